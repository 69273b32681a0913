"""python -m benchmarks.startup: seconds from the command to the first local step; padding; memory."""

import time

BEGAN = time.perf_counter()


def main() -> None:
    marks = [("python", time.perf_counter() - BEGAN)]

    def mark(name: str) -> None:
        marks.append((name, time.perf_counter() - BEGAN))

    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from fedsvd.config import from_config
    from fedsvd.run import config_folder

    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        config = compose("config", ["+experiment=dp_eps1"])
    settings = from_config(OmegaConf.to_container(config, resolve=True))  # type: ignore[arg-type]
    mark("configuration")
    from fedsvd import experiment
    from fedsvd.strategies.build import build_strategy

    mark("imports")
    run = experiment.prepare(settings, build_strategy(settings.strategy))
    mark("data, plan, model")
    run.worker.evaluate(run.state, run.worker.subset)
    mark("first evaluation")
    import resource

    from fedsvd.client.training import train_locally

    worker = run.worker
    last = 0.0
    for name, at in marks:
        print(f"{name:22}{at - last:6.2f} s")
        last = at
    print(f"{'to the first step':22}{last:6.2f} s")
    train_locally(worker, worker.initial, 1, 1)
    rows = [int(r) for r in worker.parts[1]][:128]
    real = padded = 0
    for group in worker.tokens.microbatches(rows, settings.training.budget):
        lengths = worker.tokens.lengths[group]
        real, padded = real + int(lengths.sum()), padded + int(lengths.max()) * len(group)
    print(f"computed over real tokens, a batch of 128: {padded / real:.3f}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak memory with training: {peak:.2f} GiB")


if __name__ == "__main__":
    main()
