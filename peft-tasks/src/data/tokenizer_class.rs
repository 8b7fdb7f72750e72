//! What transformers' tokenizer classes take for granted: special tokens that no file of a folder need name.
//!
//! Source: the signatures of `__init__` in `transformers/models/*/tokenization_*.py` (5.24), and `TOKENIZER_MAPPING_NAMES`
//! in `models/auto/tokenization_auto.py`. Where 5.24 maps a model type to the bare `TokenizersBackend`, which has no
//! defaults, the class of 4.57 is listed: folders of that time rely on it, and a token that is not in the vocabulary is not
//! taken anyway.

use serde_json::{Map, Value};

/// A tokenizer class and its special tokens.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TokenizerClass {
    /// Without `Fast`, as transformers compares them.
    pub(crate) name: &'static str,
    tokens: [Option<&'static str>; 7],
}

/// The order of the columns below.
const ROLES: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

impl TokenizerClass {
    /// Role and token.
    pub(crate) fn defaults(self) -> impl Iterator<Item = (&'static str, &'static str)> {
        ROLES.into_iter().zip(self.tokens).filter_map(|(role, token)| Some((role, token?)))
    }
}

/// Classes that share their tokens, which are given in the order of [`ROLES`]; `""` stands for none.
const CLASSES: &[(&[&str], [&str; 7])] = &[
    (&["GPT2Tokenizer", "CodeGenTokenizer"], ["<|endoftext|>", "<|endoftext|>", "<|endoftext|>", "", "", "", ""]),
    (&["GPTNeoXTokenizer"], ["<|endoftext|>", "<|endoftext|>", "<|endoftext|>", "", "<|padding|>", "", ""]),
    (&["Qwen2Tokenizer"], ["", "<|endoftext|>", "<|endoftext|>", "", "<|endoftext|>", "", ""]),
    (&["LlamaTokenizer", "CodeLlamaTokenizer"], ["<s>", "</s>", "<unk>", "", "", "", ""]),
    (&["BloomTokenizer"], ["<s>", "</s>", "<unk>", "", "<pad>", "", ""]),
    (&["GemmaTokenizer"], ["<bos>", "<eos>", "<unk>", "", "<pad>", "", "<mask>"]),
    (
        &["CohereTokenizer"],
        ["<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>", "<UNK>", "<SEP>", "<PAD>", "<CLS>", "<MASK_TOKEN>"],
    ),
    (
        &[
            "BertTokenizer",
            "DistilBertTokenizer",
            "ElectraTokenizer",
            "MobileBertTokenizer",
            "ConvBertTokenizer",
            "RoFormerTokenizer",
            "SqueezeBertTokenizer",
            "LayoutLMTokenizer",
        ],
        ["", "", "[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]"],
    ),
    (&["DebertaTokenizer", "DebertaV2Tokenizer"], ["[CLS]", "[SEP]", "[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]"]),
    (&["AlbertTokenizer"], ["[CLS]", "[SEP]", "<unk>", "[SEP]", "<pad>", "[CLS]", "[MASK]"]),
    (
        &[
            "RobertaTokenizer",
            "BartTokenizer",
            "LongformerTokenizer",
            "LEDTokenizer",
            "XLMRobertaTokenizer",
            "CamembertTokenizer",
            "MBartTokenizer",
            "BarthezTokenizer",
            "BlenderbotTokenizer",
            "NllbTokenizer",
            "PLBartTokenizer",
        ],
        ["<s>", "</s>", "<unk>", "</s>", "<pad>", "<s>", "<mask>"],
    ),
    (&["MPNetTokenizer"], ["<s>", "</s>", "[UNK]", "</s>", "<pad>", "<s>", "<mask>"]),
    (&["MBart50Tokenizer"], ["", "</s>", "<unk>", "</s>", "<pad>", "<s>", "<mask>"]),
    (&["T5Tokenizer", "MT5Tokenizer", "MarianTokenizer", "ByT5Tokenizer"], ["", "</s>", "<unk>", "", "<pad>", "", ""]),
    (&["PegasusTokenizer"], ["", "</s>", "<unk>", "", "<pad>", "", "<mask_2>"]),
];

/// The class of a model whose folder names none.
const BY_MODEL_TYPE: &[(&[&str], &str)] = &[
    (&["gpt2", "gpt_neo", "gptj", "opt"], "GPT2Tokenizer"),
    (&["gpt_neox"], "GPTNeoXTokenizer"),
    (&["qwen2", "qwen3"], "Qwen2Tokenizer"),
    (&["llama", "mistral", "phi3"], "LlamaTokenizer"),
    (&["bloom"], "BloomTokenizer"),
    (&["gemma", "gemma2", "gemma3", "gemma3_text"], "GemmaTokenizer"),
    (&["bert", "distilbert", "electra"], "BertTokenizer"),
    (&["deberta", "deberta-v2"], "DebertaTokenizer"),
    (&["albert"], "AlbertTokenizer"),
    (&["roberta", "bart", "xlm-roberta", "mbart"], "RobertaTokenizer"),
    (&["mpnet"], "MPNetTokenizer"),
    (&["t5", "mt5"], "T5Tokenizer"),
];

/// The class that `tokenizer_config.json` or else `config.json` names, or else that of the model type. `None` for a class
/// without defaults, such as `PreTrainedTokenizerFast`, and for one that is not known.
pub(crate) fn of(tokenizer: &Map<String, Value>, model: &Map<String, Value>) -> Option<TokenizerClass> {
    let named = [tokenizer, model].into_iter().find_map(|it| it.get("tokenizer_class")?.as_str());
    let name = match named {
        Some(name) => name.strip_suffix("Fast").unwrap_or(name),
        None => {
            let model_type = model.get("model_type")?.as_str()?;
            BY_MODEL_TYPE.iter().find(|(types, _)| types.contains(&model_type))?.1
        }
    };
    CLASSES.iter().find_map(|(names, tokens)| {
        let name = names.iter().find(|it| **it == name)?;
        Some(TokenizerClass { name, tokens: tokens.map(|it| Some(it).filter(|it| !it.is_empty())) })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn defaults(tokenizer: Value, model: Value) -> Vec<(&'static str, &'static str)> {
        let class = of(tokenizer.as_object().unwrap(), model.as_object().unwrap());
        class.into_iter().flat_map(TokenizerClass::defaults).collect()
    }

    /// Printed by transformers 5.24: `inspect.signature(AutoTokenizer…__init__)`.
    #[test]
    fn the_folder_names_a_class_or_its_model_type_does() {
        let bert = [
            ("unk_token", "[UNK]"),
            ("sep_token", "[SEP]"),
            ("pad_token", "[PAD]"),
            ("cls_token", "[CLS]"),
            ("mask_token", "[MASK]"),
        ];
        assert_eq!(defaults(json!({"do_lower_case": true}), json!({"model_type": "bert"})), bert);
        assert_eq!(defaults(json!({"tokenizer_class": "BertTokenizerFast"}), json!({"model_type": "llama"})), bert);
        let end = |model_type: &str| {
            let found = defaults(json!({}), json!({"model_type": model_type}));
            found.into_iter().find(|it| it.0 == "eos_token").map(|it| it.1)
        };
        assert_eq!([end("gpt2"), end("llama"), end("t5")], [Some("<|endoftext|>"), Some("</s>"), Some("</s>")]);
        assert_eq!([end("bert"), end("chatglm"), end("modernbert")], [None; 3]);
        let bare = json!({"tokenizer_class": "PreTrainedTokenizerFast"});
        assert!(defaults(bare, json!({"model_type": "gpt2"})).is_empty());
    }

    #[test]
    fn every_model_type_leads_to_a_class() {
        for (types, _) in BY_MODEL_TYPE {
            for model_type in *types {
                assert!(!defaults(json!({}), json!({"model_type": model_type})).is_empty(), "{model_type}");
            }
        }
    }
}
