//! Prompts and IA3 on the decoders beyond GPT-2 and LLaMA.

parity! {
    bloom_cls_p_tuning, bloom_cls_prefix, bloom_cls_prompt_tuning, bloom_ia3, bloom_p_tuning, bloom_prefix, bloom_prompt_tuning, gptj_cls_p_tuning, gptj_cls_prefix, gptj_cls_prompt_tuning, gptj_ia3, gptj_p_tuning, gptj_prefix, gptj_prompt_tuning, gptneo_cls_p_tuning, gptneo_cls_prefix, gptneo_cls_prompt_tuning, gptneo_ia3, gptneo_p_tuning, gptneo_prefix, gptneo_prompt_tuning, gptneox_cls_p_tuning, gptneox_cls_prefix, gptneox_cls_prompt_tuning, gptneox_ia3, gptneox_p_tuning, gptneox_prefix, gptneox_prompt_tuning, opt_cls_p_tuning, opt_cls_prefix, opt_cls_prompt_tuning, opt_ia3, opt_p_tuning, opt_prefix, opt_prompt_tuning,
}
