#!/usr/bin/env bash
# Train a Bradley-Terry reward model. With nothing set, it makes a tiny model and data with a known right answer and
# trains on them on the CPU in a few minutes. The same script is made for an 8B model on a cluster.
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
RUN=(python "$HERE") # runs a Python file of this folder, wherever it lies and whatever it is called (__main__.py)

# ---- yours to set -------------------------------------------------------------------------------------------------
MODEL_PATH=${MODEL_PATH:-}              # a language model to start from: folder or hub id; empty: the tiny demo model
TRAIN_FILES=${TRAIN_FILES:-}            # Parquet with chosen and rejected; empty: the demo data
VAL_FILES=${VAL_FILES:-}                # the same, other prompts; may be empty
TEST_FILES=${TEST_FILES:-}              # measured once, after training; may be empty
OUTPUT=${OUTPUT:-outputs}               # everything the run leaves; a second run with the same settings resumes what is here
NNODES=${NNODES:-1}
N_GPUS_PER_NODE=${N_GPUS_PER_NODE:-null} # null: all GPUs of a node; without GPUs, how many processes (null: one)
SEED=${SEED:-0}
# RAY_ADDRESS=auto or head:6379         # join a running Ray cluster instead of starting one on this machine
# -------------------------------------------------------------------------------------------------------------------
for SETTING in "$@"; do
    case $SETTING in
        -h | --help)
            sed -nE '2,/^# -+$/{/^# |:-/p;}' "$0"
            echo "Set these before the command: SEED=1 bash run_bt.sh. Every other setting stands in the script, with the"
            echo "reason for its value, and can be given behind the command: bash run_bt.sh data.train_batch_size=32."
            exit
            ;;
    esac
done

if [[ -z "$TRAIN_FILES" ]]; then
    "${RUN[@]}" prepare_data --source demo --seed "$SEED" --output "$OUTPUT/data"
    TRAIN_FILES=$OUTPUT/data/train.parquet VAL_FILES=$OUTPUT/data/val.parquet TEST_FILES=$OUTPUT/data/test.parquet
fi
if [[ -z "$MODEL_PATH" ]]; then
    # from scratch: 0.4 M parameters learn the demo in one pass of small batches at a high rate, after a long warm-up
    MODEL_PATH=$OUTPUT/model
    "${RUN[@]}" common.demo.tiny_model --seed "$SEED" --output "$MODEL_PATH"
    BATCH=16 LR=1e-3 WARMUP=0.16 CHECKPOINTING=False COMPILE=False
else
    # pretrained: large batches at a low rate
    BATCH=64 LR=1e-5 WARMUP=0.05 CHECKPOINTING=auto COMPILE=True
fi

DATA=(
    data.train_files="'$TRAIN_FILES'"
    data.val_files="${VAL_FILES:+'$VAL_FILES'}"
    data.test_files="${TEST_FILES:+'$TEST_FILES'}"
    data.train_batch_size=$BATCH        # pairs per step; a pair is one row, so no factor of two
    data.max_length=2048                # tokens of prompt and answer
    data.max_tokens_per_gpu=16384       # per micro-batch, at least twice max_length; raise until memory is full
)
MODEL=(
    model.path="'$MODEL_PATH'"
    # True trades a third more compute for memory: without it a 4B model's activations alone take some 70 GiB. auto: only
    # if the card needs it; without a GPU always
    model.enable_gradient_checkpointing=$CHECKPOINTING
    # True: on GPUs torch makes a few kernels of each layer's many. Steps take a third less time, the first one more
    engine.use_torch_compile=$COMPILE
)
OPTIM=(
    optim.lr=$LR
    optim.lr_warmup_steps_ratio=$WARMUP # the reward head starts at random and would kick the backbone
    optim.min_lr_ratio=0.0
    optim.weight_decay=0.01
    optim.betas='[0.9,0.98]'            # a memory of 50 steps: small batches of noisy preferences
    optim.clip_grad=1.0
)
LOSS=(
    loss.margin_scale=0                 # above 0: ask for a larger gap where annotators were surer (needs `margin`)
    loss.centering=0.01                 # keeps rewards around 0 (Eisenstein et al. 2023, who use 0.01)
)
TRAINER=(
    trainer.output="'$OUTPUT'"
    # a second pass over preferences often overfits (Ouyang et al. 2022, appendix C.2; README.md, "On real preferences")
    trainer.total_epochs=1
    trainer.seed="$SEED"
    trainer.test_freq=100
    trainer.save_freq=200
    trainer.max_ckpt_to_keep=2          # each holds weights and optimizer: three times the model in fp32
    trainer.nnodes="$NNODES"
    trainer.n_gpus_per_node="$N_GPUS_PER_NODE"
)

"${RUN[@]}" train "${DATA[@]}" "${MODEL[@]}" "${OPTIM[@]}" "${LOSS[@]}" "${TRAINER[@]}" "$@"
