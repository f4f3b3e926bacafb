#!/usr/bin/env bash
# Train a judge that reasons, then prefers A, B or neither. With nothing set, it makes compared responses with a known
# right preference, warm-starts a tiny judge from a biased annotator's transcripts, and corrects its bias by GRPO, on the CPU
# in a few minutes. The same script is made for an 8B judge on a cluster.
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
RUN=(python "$HERE") # runs a Python file of this folder, wherever it lies and whatever it is called (__main__.py)

# ---- yours to set -------------------------------------------------------------------------------------------------
MODEL_PATH=${MODEL_PATH:-}              # a judge, or a chat model, to start from: folder or hub id; empty: the demo's warm start
TRAIN_FILES=${TRAIN_FILES:-}            # Parquet with input, output, metadata (see dataset.py); empty: the demo data
VAL_FILES=${VAL_FILES:-}                # the same, other dialogues; chooses the best policy
TEST_FILES=${TEST_FILES:-}              # judged before and after training; may be empty
OUTPUT=${OUTPUT:-outputs}               # everything the run leaves; a second run with the same settings resumes what is here
NNODES=${NNODES:-1}
N_GPUS_PER_NODE=${N_GPUS_PER_NODE:-null} # null: all GPUs of a node; without GPUs, how many processes (null: one)
SEED=${SEED:-0}
ROLLOUT=${ROLLOUT:-}                    # vllm, or hf: the policy answers by itself; empty: vllm where there is a GPU
# RAY_ADDRESS=auto or head:6379         # join a running Ray cluster instead of starting one on this machine
# -------------------------------------------------------------------------------------------------------------------
PLAN=false
for SETTING in "$@"; do
    case $SETTING in
        -h | --help)
            sed -nE '2,/^# -+$/{/^# |:-/p;}' "$0"
            echo "Set these before the command: SEED=1 bash run_pairwise.sh. Every other setting stands in the script, with the"
            echo "reason for its value, and can be given behind the command: bash run_pairwise.sh data.train_batch_size=32."
            exit
            ;;
        # say whether it fits, and start nothing
        plan=false | plan=False | plan=FALSE) PLAN=false ;;
        plan=*) PLAN=true ;;
    esac
done

if [[ -z "$MODEL_PATH" && ! -f "$HERE/../sft/run_sft.sh" ]]; then
    echo "MODEL_PATH is not set, and ../sft, which would make a judge to start from, is not beside this folder." >&2
    echo "Set MODEL_PATH to a chat model or to a judge that ../sft has trained elsewhere." >&2
    exit 1
fi
if [[ "$PLAN" == true ]]; then
    ROLLOUT=${ROLLOUT:-vllm} # a plan is for GPUs
else
    ROLLOUT=$("${RUN[@]}" common.grpo.answering "$ROLLOUT") # vllm or hf; stops here if what is set cannot run
fi
if [[ -z "$TRAIN_FILES" && -n "$VAL_FILES$TEST_FILES" ]]; then
    echo "VAL_FILES or TEST_FILES without TRAIN_FILES: set all, or none for the demo's data." >&2
    exit 1
fi
if [[ -n "$TRAIN_FILES" && -z "$MODEL_PATH" ]]; then
    echo "MODEL_PATH is not set: the demo's tiny judge is trained on your rows. This shows the way only."
fi
if [[ -z "$TRAIN_FILES" && -n "$MODEL_PATH" ]]; then
    echo "TRAIN_FILES is not set: your model is trained on the demo's rows. This shows the way only."
fi
if [[ -z "$TRAIN_FILES" || -z "$MODEL_PATH" ]]; then
    echo "=== the demo's data"
    # 320 pairs in both orders: 20 steps of 32 prompts
    "${RUN[@]}" prepare_data --source demo --seed "$SEED" --demo-rows 320 --biased-transcripts 6000 \
        --output "$OUTPUT/data"
fi
if [[ -z "$TRAIN_FILES" ]]; then
    TRAIN_FILES=$OUTPUT/data/train.parquet VAL_FILES=$OUTPUT/data/val.parquet TEST_FILES=$OUTPUT/data/test.parquet
fi
if [[ -z "$MODEL_PATH" ]]; then
    PROMPTS=32 PROMPTS_PER_UPDATE=16 LR=1.5e-4 EPOCHS=1 ANSWER=48 CHECKPOINTING=False COMPILE=False TEST_FREQ=5 SAVE_FREQ=5
else
    PROMPTS=128 PROMPTS_PER_UPDATE=64 LR=1e-6 EPOCHS=2 ANSWER=1024 CHECKPOINTING=auto COMPILE=True TEST_FREQ=20 SAVE_FREQ=20
fi
if [[ -z "$MODEL_PATH" && "$PLAN" == true ]]; then
    MODEL_PATH=$OUTPUT/shape # of the warm start's model, and this is all that a plan needs
    "${RUN[@]}" common.demo.tiny_model --seed "$SEED" --output "$MODEL_PATH"
elif [[ -z "$MODEL_PATH" ]]; then
    # A judge cannot learn its form by chance: GRPO needs answers of which some are right. So the demo starts from
    # transcripts, of an annotator who says A to most ties. 0.4 M weights, so small batches at a high rate
    echo "=== warm start: a judge to start from, by SFT"
    RESUME=trainer.resume_mode=auto
    for SETTING in "$@"; do
        if [[ "$SETTING" == trainer.resume_mode=* ]]; then RESUME=$SETTING; fi # starting over is meant for this too
    done
    TRAIN_FILES=$OUTPUT/data/warm_start.parquet VAL_FILES='' TEST_FILES='' OUTPUT=$OUTPUT/warm_start \
        RAY_ADDRESS='' NNODES=1 N_GPUS_PER_NODE=null bash "$HERE/../sft/run_sft.sh" "$RESUME"
    MODEL_PATH=$OUTPUT/warm_start/checkpoint
fi
if [[ "$ROLLOUT" == hf ]]; then OFFLOAD=False BATCHED=65536; else OFFLOAD=True BATCHED=8192; fi

# One step: PROMPTS x 8 answers are sampled and rewarded, then trained on in PROMPTS / PROMPTS_PER_UPDATE updates. With
# the demo's numbers: 32 x 8 = 256 answers, two updates of 128.
DATA=(
    data.train_files="'$TRAIN_FILES'"
    data.val_files="${VAL_FILES:+'$VAL_FILES'}"
    data.train_batch_size=$PROMPTS      # prompts per step
    data.max_prompt_length=3072         # tokens of a whole rendered prompt; the demo's have 180
    data.filter_overlong_prompts=True   # longer prompts are left out and counted; cut, they would lack dialogue or task
    data.max_response_length=$ANSWER    # tokens of reasoning and verdict; an answer that is cut has none
)
MODEL=(
    actor_rollout_ref.model.path="'$MODEL_PATH'"
    # True trades a third more compute for memory. auto: only if the card needs it; without a GPU always
    actor_rollout_ref.model.enable_gradient_checkpointing=$CHECKPOINTING
    # True: on GPUs torch makes a few kernels of each layer's many. Steps take a third less time, the first one more
    actor_rollout_ref.actor.fsdp_config.use_torch_compile=$COMPILE
)
ACTOR=(
    actor_rollout_ref.actor.ppo_mini_batch_size=$PROMPTS_PER_UPDATE # prompts per update, each with all its answers
    # tokens of a micro-batch: memory and speed only, the result only by rounding. If it holds all 8 answers to the longest prompt,
    # each counted with its prompt, then the prompt is computed once for them
    actor_rollout_ref.actor.ppo_max_token_len_per_gpu=32768
    actor_rollout_ref.actor.optim.lr=$LR
    actor_rollout_ref.actor.optim.lr_warmup_steps=5 # Adam's averages need some steps before they can be trusted
    actor_rollout_ref.actor.optim.weight_decay=0.0  # the policy should stay near its start if rewards say nothing
    actor_rollout_ref.actor.optim.betas='[0.9,0.95]' # a memory of 20 updates: runs are short
    actor_rollout_ref.actor.grad_clip=1.0
    actor_rollout_ref.actor.clip_ratio_low=0.2      # an update moves a token's odds by this much, then its gradient stops
    actor_rollout_ref.actor.clip_ratio_high=0.2
    actor_rollout_ref.actor.use_kl_loss=False       # no reference model: half the memory. Rewards come from labels, not
    actor_rollout_ref.actor.kl_loss_coef=0.001      # from a model that drift could exploit. True keeps reasoning closer
    actor_rollout_ref.actor.loss_agg_mode=token-mean # every token weighs the same, so long answers are not favoured
    # while vLLM answers, weights and optimizer wait in host memory: seconds a step, and 12 bytes a weight are free
    actor_rollout_ref.actor.fsdp_config.param_offload=$OFFLOAD
    actor_rollout_ref.actor.fsdp_config.optimizer_offload=$OFFLOAD
)
ROLLOUTS=(
    actor_rollout_ref.rollout.name="$ROLLOUT"
    actor_rollout_ref.rollout.n=8                   # answers per prompt; their mean reward is each other's baseline
    actor_rollout_ref.rollout.temperature=1.0       # the policy as it is: trained log-probabilities are those sampled from
    # hf: tokens with keys and values in a batch, a shared prompt once where the model can share it;
    # vllm: tokens in an iteration, for which it sets memory aside
    actor_rollout_ref.rollout.max_num_batched_tokens=$BATCHED
    actor_rollout_ref.rollout.max_num_seqs=256      # vllm only: answers at a time, as far as its share holds them
    actor_rollout_ref.rollout.gpu_memory_utilization=0.6 # vllm only: its share while it answers; it sleeps while we train
)
REWARD=(
    # what "tie" earns against a win, and a win against a tie; more than 0 pays the judge that will not say who is better
    reward.custom_reward_function.reward_kwargs.tie_credit=0.0
    # True: clear wins weigh more, by the rows' strength. Needs algorithm.norm_adv_by_std_in_grpo=False
    reward.custom_reward_function.reward_kwargs.by_strength=False
)
ALGORITHM=(
    algorithm.norm_adv_by_std_in_grpo=True          # a group's rewards over their spread, as in the GRPO paper
)
TRAINER=(
    trainer.output="'$OUTPUT'"
    trainer.total_epochs=$EPOCHS
    trainer.seed="$SEED"
    trainer.test_freq=$TEST_FREQ
    trainer.save_freq=$SAVE_FREQ
    trainer.max_ckpt_to_keep=2          # each holds weights and optimizer: three times the model in fp32
    trainer.nnodes="$NNODES"
    trainer.n_gpus_per_node="$N_GPUS_PER_NODE"
)

echo "=== GRPO"
"${RUN[@]}" train "${DATA[@]}" "${MODEL[@]}" "${ACTOR[@]}" "${ROLLOUTS[@]}" "${REWARD[@]}" "${ALGORITHM[@]}" \
    "${TRAINER[@]}" "$@"
if [[ "$PLAN" == true ]]; then exit; fi # nothing was trained

# The judge before and after training, on the same rows and with the run's own limits
NAME=${TEST_FILES##*/}
BEFORE=("${RUN[@]}" evaluate --model "$MODEL_PATH" --tokenizer "$OUTPUT/tokenizer" --data "$TEST_FILES"
    --settings "$OUTPUT/settings.yaml" --output "$OUTPUT/before")
AFTER=("${RUN[@]}" evaluate --model "$OUTPUT/checkpoint" --data "$TEST_FILES" --settings "$OUTPUT/settings.yaml"
    --output "$OUTPUT" --card --compare-to "$OUTPUT/before/evaluation_${NAME%.*}.json")
if [[ -n "$TEST_FILES" && -z "${RAY_ADDRESS:-}" ]]; then
    printf '\n=== before training:\n'
    "${BEFORE[@]}"
    printf '\n=== before training -> the best policy:\n'
    "${AFTER[@]}"
    if grep -qs '^{"step": 0,' "$OUTPUT/best.json"; then
        echo "No step was better on the validation rows than the start, so both are the same judge. The last policy:"
        echo "$OUTPUT/checkpoint_last"
    fi
elif [[ -n "$TEST_FILES" ]]; then
    # this machine may be a head node without a GPU
    echo "To see how well it judges, run on a machine that can hold the model: ${BEFORE[*]} && ${AFTER[*]}"
fi
