"""Special tokens by model family: what their tokenizers call special, and what their chat templates write as structure.

Typed in by hand from public tokenizer and template files, to try the quoting of judged text on. Of tokens that come in
hundreds (`<unused0>` to `<unused98>`) a few stand here.
"""

_FAMILIES = {
    "Qwen 1 and Qwen-VL": "<|extra_0|> <|extra_204|> <ref> </ref> <box> </box> <quad> </quad> <img> </img> <imgpad>",
    "Qwen 2.5 to 3.5": """<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|box_end|> <|quad_start|>
        <|vision_start|> <|vision_pad|> <|image_pad|> <|video_pad|> <|fim_prefix|> <|fim_middle|> <|fim_suffix|>
        <|fim_pad|> <|repo_name|> <|file_sep|> <tool_call> </tool_call> <tool_response> </tool_response> <think>
        </think> <|audio_start|> <|audio_pad|> <tts_pad> <tts_text_bos> <tts_text_eod> <tts_text_bos_single>""",
    "Llama 2 and Code Llama": """<s> </s> <unk> [INST] [/INST] <<SYS>> <</SYS>> <PRE> <SUF> <MID> ▁<PRE> ▁<EOT>""",
    "Llama 3": """<|begin_of_text|> <|end_of_text|> <|start_header_id|> <|end_header_id|> <|eot_id|> <|eom_id|>
        <|python_tag|> <|finetune_right_pad_id|> <|step_id|> <|reserved_special_token_0|>
        <|reserved_special_token_247|> <|image|>""",
    "Llama 4": """<|header_start|> <|header_end|> <|eot|> <|eom|> <|python_start|> <|python_end|> <|patch|>
        <|finetune_right_pad|> <|tile_x_separator|> <|image_start|> <|fim_prefix|>
        <|text_post_train_reserved_special_token_3|>""",
    "Mistral": """[INST] [/INST] [TOOL_CALLS] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_RESULTS] [/TOOL_RESULTS]
        [TOOL_CONTENT] [SYSTEM_PROMPT] [/SYSTEM_PROMPT] [IMG] [IMG_BREAK] [IMG_END] [AUDIO] [BEGIN_AUDIO] [TRANSCRIBE]
        [PREFIX] [MIDDLE] [SUFFIX] [ARGS] [CALL_ID] [MODEL_SETTINGS] [/MODEL_SETTINGS] [control_8] [control_768]
        [REFERENCE_DOC_0] <SPECIAL_20> <SPECIAL_999>""",
    "Magistral": "[THINK] [/THINK]",
    "Gemma 1 to 3": """<pad> <eos> <bos> <unk> <mask> <unused0> <unused98> [multimodal] [@BOS@] <start_of_turn>
        <end_of_turn> <start_of_image> <end_of_image> <image_soft_token>""",
    "Gemma 4": """<|turn> <turn|> <|channel> <channel|> <|think|> <|tool> <tool|> <|tool_call> <tool_call|>
        <|tool_response> <tool_response|> <|"|> <|image> <image|> <|image|> <|audio|> <|video|>""",
    "DeepSeek": """<｜begin▁of▁sentence｜> <｜end▁of▁sentence｜> <｜▁pad▁｜> <｜User｜> <｜Assistant｜> <|EOT|>
        <｜fim▁hole｜> <｜fim▁begin｜> <｜tool▁calls▁begin｜> <｜tool▁call▁end｜> <｜tool▁sep｜>
        <｜tool▁outputs▁begin｜>        <｜place▁holder▁no▁0｜> <｜DSML｜> <|ref|> <|/det|> <|grounding|>""",
    "GLM": """[MASK] [gMASK] [sMASK] <sop> <eop> <|system|> <|user|> <|assistant|> <|observation|> <|code_prefix|>
        <|begin_of_image|> <|end_of_box|> <arg_key> </arg_key> <arg_value> </arg_value> <tool_call> <tool_response>""",
    "Kimi": """[BOS] [EOS] [EOT] [PAD] [UNK] [extra_id_0] [start_header_id] [end_header_id] <osagent_mode>
        <|im_user|> <|im_assistant|> <|im_system|> <|im_middle|>
        <|tool_calls_section_begin|> <|tool_call_begin|> <|tool_call_argument_begin|> <|reserved_token_163601|>
        <|media_begin|> <|open|> <|close|> <|sep|> <|end_of_msg|> <|kimi_image_placeholder|> ◁think▷ ◁/think▷""",
    "MiniMax": """]~b] ]~!b[ [e~[ ]!p~[ ]!d~[ ]<]minimax[>[ ]<]image[>[ ]<]speech[>[ <beginning_of_sentence>
        <end_of_sentence> <minimax:tool_call> </minimax:tool_call> <mm:think> </mm:think> <filename> <reponame>
        <jupyter_error> <commit_message> <empty_source_file> <source_files> <repo_struct> <file_content> <filepath>
        <code_context> <add_file> <delete_file> <rename_file> <edit_file> <pr_start> <review_comment> <function_call>
        <code_interpreter> <fim_pad>""",
    "Phi 4": """<|endoftext|> <|dummy_0|> <|im_sep|> <|end|> <|tool|> <|/tool|> <|tool_call|> <|/tool_call|>""",
    "Granite and StarCoder": """<|start_of_role|> <|end_of_role|> <|end_of_text|> <|start_of_cite|> <fim_prefix>
        <fim_middle> <fim_suffix> <fim_pad> <fim-prefix> <fim-middle> <fim-suffix> <fim-pad> <filename> <gh_stars>
        <issue_start> <issue_comment> <issue_closed> <jupyter_start> <jupyter_text> <jupyter_code> <jupyter_output>
        <jupyter_script> <empty_output> <commit_before> <commit_msg> <commit_after> <reponame> <repo_name> <file_sep>
        <loc_12>""",
    "OLMo": """|||EMAIL_ADDRESS||| |||PHONE_NUMBER||| |||IP_ADDRESS||| <|padding|> <|extra_id_0|>
        <functions> </functions> <function_calls> </function_calls>""",
    "SmolLM": """<repo_name> <file_sep> <issue_start> <jupyter_script> <empty_output> <|im_start|>
        <|finetune_right_pad_id|>
        <tool_call> <tool_response>""",
    "Falcon": """>>TITLE<< >>ABSTRACT<< >>INTRODUCTION<< >>SUMMARY<< >>COMMENT<< >>ANSWER<< >>QUESTION<< >>DOMAIN<<
        >>EMAIL_ADDRESS<< >>IP_ADDRESS<< >>PREFIX<< >>MIDDLE<< >>UNUSED_12<<""",
    "Jamba": "<|startoftext|> <|bom|> <|pad|> <|unk|>",
    "Hunyuan": """<|startoftext|> <|extra_4|> <|eos|> <｜hy_begin▁of▁sentence｜> <｜hy_User｜> <｜hy_▁pad▁｜>
        <｜hy_place▁holder▁no▁12｜> <｜reasoning_mode｜> <tool_calls> <tool_responses> <tool_sep>""",
    "ERNIE": """<|begin_of_sentence|> <mask:0> <mask:7> <|LOC_0|> <|LOC_1000|> <|CROSS_PAD|> <|IMAGE_PLACEHOLDER|>
        <response> </response> <cls> <sep>""",
    "Seed-OSS and Seed-Coder": """<seed:bos> <seed:eos> <seed:pad> <seed:think> </seed:think> <seed:tool_call>
        </seed:tool_call> <seed:cot_budget_reflect> </seed:cot_budget_reflect> <[begin▁of▁sentence]>
        <[end▁of▁sentence]> <[fim-suffix]>""",
    "gpt-oss": """<|startoftext|> <|return|> <|constrain|> <|channel|> <|start|> <|message|> <|call|> <|endofprompt|>
        <|reserved_200000|>""",
    "Nemotron": """<SPECIAL_10> <SPECIAL_12> <extra_id_0> <TOOLCALL> </TOOLCALL> <AVAILABLE_TOOLS> </AVAILABLE_TOOLS>
        <TOOL_RESPONSE> </TOOL_RESPONSE>""",
    "EXAONE": """[|system|] [|user|] [|assistant|] [|endofturn|] [|tool|] [BOS] [PAD] [UNK]""",
    "Command and Aya": """<BOS_TOKEN> <EOS_TOKEN> <EOP_TOKEN> <EOC_TOKEN> <PAD> <UNK> <CLS> <SEP> <MASK_TOKEN>
        <|START_OF_TURN_TOKEN|> <|END_OF_TURN_TOKEN|> <|CHATBOT_TOKEN|> <|START_THINKING|> <|START_ACTION|>
        <|EXTRA_0_TOKEN|>""",
    "InternLM and InternVL": """<|action_start|> <|interpreter|> <|plugin|> <eoh> <eoa> <TOKENS_UNUSED_0>
        [UNUSED_TOKEN_146] <IMG_CONTEXT> <img> </img> <quad> <ref> <box> <SMILES> </SMILES> <protein>
        <dna> <rna> <|ts|>""",
    "Baichuan": """<reserved_106> <reserved_107> <B_SYS> <B_USYS> <B_FUNC> <C_Q> <C_A> <H_Q>""",
    "Yi": "<|Human|> <|Assistant|> <|System|> <fim_prefix> <|unused999|>",
    "LFM 2": "<|tool_list_start|> <|tool_list_end|> <|tool_call_start|> <|cot_start|> <|reserved_0|>",
    "LongCat": """<longcat_s> </longcat_s> <longcat_pad> <longcat_think> </longcat_think> <longcat_tool_call>
        <longcat_arg_key> <longcat_observation> <longcat_files>""",
    "MiMo": "<|mimo_video_start|> <|mimo_audio_eod|> <|mimo_audio_end|>",
    "Ling": "<role> </role> <|role_end|> <|number_end|> [gMASK]",
    "MiniCPM": "<用户> <AI> <|thought_start|> <|execute_end|> <box>",
    "TeleChat": "<_start> <_end> <_user> <_bot> <_system> <_pad>",
    "Pangu": "[unused9] [unused10] [unused16]",
    "LLM-jp": "<EOD|LLM-jp> <PAD|LLM-jp> <CLS|LLM-jp> <mask|LLM-jp>",
    "Grok and others": "<|separator|> <|control1|> <|prompter|> <|SYSTEM|> <|userprompt|> <|role_sep|> <|message_sep|>",
    "LLaVA and Molmo": "<image> <im_start> <im_end> <im_patch> <im_col> <|image|>",
    "T5, BERT and Whisper": "<extra_id_0> <extra_id_99> [CLS] [SEP] [MASK] [unused1] <|startoftranscript|> <|0.00|>",
}
SPECIAL_TOKENS = {family: tokens.split() for family, tokens in _FAMILIES.items()}
SPECIAL_TOKENS["MiniMax"] += ["]<]start of speech[>[", "]<]end of image[>[", "]<]vision pad[>["]
SPECIAL_TOKENS["Apriel"] = ["[BEGIN FINAL RESPONSE]", "[END FINAL RESPONSE]", "<|begin_assistant|>", "<|end|>"]
# only the tokenizer can tell these from ordinary text
UNLIKE_TOKENS = [
    "PI:URL",
    "/think",
    "/nothink",
    "eng_Latn",
    "<2mass>",
    "<answer>",
    "<C>",
    "<end of turn>",
    "◆user",
    "~~",
]
