# docker build -t fedsvd .                                   CPU
# docker build -t fedsvd --build-arg TORCH=torch==2.13.0+cu130 --build-arg PIP_ARGS="--extra-index-url URL" .   CUDA
# docker run --rm -v "$PWD/outputs:/home/fedsvd/outputs" fedsvd +experiment=dp_eps1
# For CUDA add --gpus all to docker run; the PyTorch wheel brings its own CUDA libraries.
FROM python:3.11-slim

# Which PyTorch: the requirement, and what pip needs to find it. "+cpu" asks for the CPU build by name
# where the default index serves CUDA builds.
ARG TORCH=torch==2.13.0
ARG PIP_ARGS=""

RUN useradd --create-home fedsvd
WORKDIR /home/fedsvd/src
COPY --chown=fedsvd pyproject.toml constraints.txt README.md ./
COPY --chown=fedsvd fedsvd ./fedsvd
COPY --chown=fedsvd hydra_plugins ./hydra_plugins
COPY --chown=fedsvd configs ./configs
RUN chown -R fedsvd /home/fedsvd
USER fedsvd
ENV VIRTUAL_ENV=/home/fedsvd/venv
ENV PATH="$VIRTUAL_ENV/bin:$PATH"
RUN python -m venv "$VIRTUAL_ENV" \
 && pip install --no-cache-dir $PIP_ARGS "$TORCH" \
 && pip install --no-cache-dir $PIP_ARGS -c constraints.txt .
WORKDIR /home/fedsvd
ENTRYPOINT ["python", "-m", "fedsvd.run"]
CMD ["+experiment=dp_eps1"]
