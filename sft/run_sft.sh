#!/usr/bin/env bash
# Teach a language model to judge, or anything else that conversations can show. With nothing set, it makes a tiny model
# and a judge's conversations with known right verdicts, and trains on the CPU in a few minutes. The same script is
# made for an 8B model on a cluster.
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
RUN=(python "$HERE") # runs a Python file of this folder, wherever it lies and whatever it is called (__main__.py)

# ---- yours to set -------------------------------------------------------------------------------------------------
MODEL_PATH=${MODEL_PATH:-}              # a language model to start from: folder or hub id; empty: the tiny demo model
TRAIN_FILES=${TRAIN_FILES:-}            # Parquet with messages; empty: the demo data
VAL_FILES=${VAL_FILES:-}                # the same, other prompts; may be empty
TEST_FILES=${TEST_FILES:-}              # measured once, after training; may be empty
OUTPUT=${OUTPUT:-outputs}               # everything the run leaves; a second run with the same settings resumes what is here
NNODES=${NNODES:-1}
N_GPUS_PER_NODE=${N_GPUS_PER_NODE:-null} # null: all GPUs of a node; without GPUs, how many processes (null: one)
SEED=${SEED:-0}
# RAY_ADDRESS=auto or head:6379         # join a running Ray cluster instead of starting one on this machine
# -------------------------------------------------------------------------------------------------------------------
PLAN=false
for SETTING in "$@"; do
    case $SETTING in
        -h | --help)
            sed -nE '2,/^# -+$/{/^# |:-/p;}' "$0"
            echo "Set these before the command: SEED=1 bash run_sft.sh. Every other setting stands in the script, with the"
            echo "reason for its value, and can be given behind the command: bash run_sft.sh data.train_batch_size=32."
            exit
            ;;
        # say whether it fits, and start nothing
        plan=false | plan=False | plan=FALSE) PLAN=false ;;
        plan=*) PLAN=true ;;
    esac
done

if [[ -z "$TRAIN_FILES" ]]; then
    "${RUN[@]}" prepare_data --source demo --seed "$SEED" --output "$OUTPUT/data"
    TRAIN_FILES=$OUTPUT/data/train.parquet VAL_FILES=$OUTPUT/data/val.parquet TEST_FILES=$OUTPUT/data/test.parquet
fi
if [[ -z "$MODEL_PATH" ]]; then
    # from scratch: 0.4 M parameters learn the demo in one pass of small batches at a high rate. Comparing A with B is
    # learned last, in the second half of the run
    MODEL_PATH=$OUTPUT/model
    "${RUN[@]}" common.demo.tiny_model --seed "$SEED" --output "$MODEL_PATH"
    BATCH=16 LR=2e-3 WARMUP=0.1 EPOCHS=1 CHECKPOINTING=False COMPILE=False
else
    # pretrained: a low rate, and the same rows three times; SFT forgives repetition, preferences do not
    BATCH=64 LR=1e-5 WARMUP=0.03 EPOCHS=3 CHECKPOINTING=auto COMPILE=True
fi

DATA=(
    data.train_files="'$TRAIN_FILES'"
    data.val_files="${VAL_FILES:+'$VAL_FILES'}"
    data.test_files="${TEST_FILES:+'$TEST_FILES'}"
    data.train_batch_size=$BATCH        # conversations per step
    data.max_length=4096                # tokens of a conversation
    data.max_tokens_per_gpu=16384       # per micro-batch, at least max_length: memory and speed only, the result only by rounding
)
MODEL=(
    model.path="'$MODEL_PATH'"
    # True trades a third more compute for memory. auto: only if the card needs it; without a GPU always
    model.enable_gradient_checkpointing=$CHECKPOINTING
    # True: on GPUs torch makes a few kernels of each layer's many. Steps take a third less time, the first one more
    engine.use_torch_compile=$COMPILE
)
OPTIM=(
    optim.lr=$LR
    optim.lr_warmup_steps_ratio=$WARMUP # Adam's averages need some steps before they can be trusted
    optim.min_lr_ratio=0.0
    optim.weight_decay=0.01
    optim.betas='[0.9,0.98]'            # a memory of 50 steps: runs are short
    optim.clip_grad=1.0
)
TRAINER=(
    trainer.output="'$OUTPUT'"
    trainer.total_epochs=$EPOCHS
    trainer.seed="$SEED"
    trainer.test_freq=100
    trainer.save_freq=200
    trainer.max_ckpt_to_keep=2          # each holds weights and optimizer: three times the model in fp32
    trainer.nnodes="$NNODES"
    trainer.n_gpus_per_node="$N_GPUS_PER_NODE"
)

"${RUN[@]}" train "${DATA[@]}" "${MODEL[@]}" "${OPTIM[@]}" "${TRAINER[@]}" "$@"
if [[ "$PLAN" == true ]]; then exit; fi # nothing was trained
EVALUATE=("${RUN[@]}" evaluate --model "$OUTPUT/checkpoint" --data "$TEST_FILES" --settings "$OUTPUT/settings.yaml" --card)
if [[ -n "$TEST_FILES" && -z "${RAY_ADDRESS:-}" ]]; then
    "${EVALUATE[@]}"
elif [[ -n "$TEST_FILES" ]]; then
    # this machine may be a head node without a GPU
    echo "To see how well the model judges, run on a machine that can hold it: ${EVALUATE[*]}"
fi
