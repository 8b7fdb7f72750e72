//! The class of transformers that reads a checkpoint: `architectures` of its `config.json`.

/// Classes by the name of their task.
type Classes = &'static [(&'static str, &'static str)];

/// The start of the class names of a `model_type`, and those classes that are named otherwise. From the tables of
/// `transformers/models/auto/modeling_auto.py`, 5.24.
const CLASSES: [(&str, &str, Classes); 28] = [
    ("bart", "Bart", &[]),
    ("bert", "Bert", &[]),
    ("bloom", "Bloom", &[]),
    ("chatglm", "ChatGLM", &[("causal-lm", "ChatGLMForConditionalGeneration")]),
    ("deberta", "Deberta", &[]),
    ("deberta-v2", "DebertaV2", &[]),
    ("gemma2", "Gemma2", &[]),
    ("gemma3_text", "Gemma3Text", &[("causal-lm", "Gemma3ForCausalLM")]),
    ("gpt2", "GPT2", &[("causal-lm", "GPT2LMHeadModel")]),
    ("gpt_neo", "GPTNeo", &[]),
    ("gpt_neox", "GPTNeoX", &[]),
    ("gptj", "GPTJ", &[]),
    ("llama", "Llama", &[]),
    ("mbart", "MBart", &[]),
    ("mistral", "Mistral", &[]),
    ("modernbert", "ModernBert", &[]),
    ("mt5", "MT5", &[]),
    ("opt", "OPT", &[]),
    ("phi3", "Phi3", &[]),
    ("qwen2", "Qwen2", &[]),
    ("qwen3", "Qwen3", &[]),
    ("roberta", "Roberta", &[]),
    ("segformer", "Segformer", &[]),
    ("swin", "Swin", &[]),
    ("t5", "T5", &[]),
    ("vit", "ViT", &[]),
    ("whisper", "Whisper", &[]),
    ("xlm-roberta", "XLMRoberta", &[]),
];

/// How the classes of a task end; the first is the usual one.
const ENDINGS: [(&str, &[&str]); 10] = [
    ("causal-lm", &["ForCausalLM", "LMHeadModel"]),
    ("seq2seq-lm", &["ForConditionalGeneration"]),
    ("speech-to-text", &["ForConditionalGeneration"]),
    ("masked-lm", &["ForMaskedLM", "ForPreTraining"]),
    ("seq-cls", &["ForSequenceClassification"]),
    ("token-cls", &["ForTokenClassification"]),
    ("question-answering", &["ForQuestionAnswering"]),
    ("image-cls", &["ForImageClassification"]),
    ("semantic-seg", &["ForSemanticSegmentation"]),
    ("similarity", &["Model"]),
];

/// The class of a task's models, given what the base's file names.
///
/// A class that reads models of the task already is kept. Nothing is named for a task, or a `model_type`, that
/// transformers does not have.
pub(super) fn class(model_type: &str, task: &str, of_base: Option<&str>) -> Option<String> {
    let endings = ENDINGS.iter().find(|it| it.0 == task)?.1;
    let known = CLASSES.iter().find(|it| it.0 == model_type);
    if let Some(own) = known.and_then(|it| it.2.iter().find(|it| it.0 == task)) {
        return Some(own.1.to_owned());
    }
    // `Model` ends `LMHeadModel` too.
    let is_of_task = |it: &&str| task != "similarity" && endings.iter().any(|ending| it.ends_with(ending));
    if let Some(same) = of_base.filter(is_of_task) {
        return Some(same.to_owned());
    }
    let start = known.map(|it| it.1).or_else(|| {
        let all = ENDINGS.iter().flat_map(|it| it.1);
        all.filter_map(|it| of_base?.strip_suffix(it)).min_by_key(|it| it.len())
    })?;
    Some(format!("{start}{}", endings[0]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_those_of_transformers() {
        for (model_type, task, of_base, wanted) in [
            ("llama", "seq-cls", Some("LlamaForCausalLM"), Some("LlamaForSequenceClassification")),
            ("gpt2", "token-cls", None, Some("GPT2ForTokenClassification")),
            ("gpt2", "causal-lm", Some("GPT2Model"), Some("GPT2LMHeadModel")),
            ("gpt2", "similarity", Some("GPT2LMHeadModel"), Some("GPT2Model")),
            ("gemma3_text", "causal-lm", Some("Gemma3ForCausalLM"), Some("Gemma3ForCausalLM")),
            ("gemma3_text", "seq-cls", Some("Gemma3ForCausalLM"), Some("Gemma3TextForSequenceClassification")),
            ("t5", "seq2seq-lm", Some("T5WithLMHeadModel"), Some("T5ForConditionalGeneration")),
            ("bert", "masked-lm", Some("BertForPreTraining"), Some("BertForPreTraining")),
            ("bert", "question-answering", Some("BertForMaskedLM"), Some("BertForQuestionAnswering")),
            (
                "segformer",
                "semantic-seg",
                Some("SegformerForImageClassification"),
                Some("SegformerForSemanticSegmentation"),
            ),
            ("vit", "image-cls", Some("ViTModel"), Some("ViTForImageClassification")),
            // Of types that are registered elsewhere.
            ("albert", "seq-cls", Some("AlbertForMaskedLM"), Some("AlbertForSequenceClassification")),
            ("albert", "seq-cls", None, None),
            ("llama", "ranking", Some("LlamaForCausalLM"), None),
        ] {
            assert_eq!(class(model_type, task, of_base).as_deref(), wanted, "{model_type} {task}");
        }
    }
}
