//! The languages that Whisper was trained on.

use std::collections::BTreeMap;

use peft_core::{PeftError, Result, nearest};

/// English names, and the codes that stand in tokens: `TO_LANGUAGE_CODE` of
/// `transformers/models/whisper/tokenization_whisper.py` (5.23).
const LANGUAGES: [(&str, &str); 112] = [
    ("afrikaans", "af"),
    ("albanian", "sq"),
    ("amharic", "am"),
    ("arabic", "ar"),
    ("armenian", "hy"),
    ("assamese", "as"),
    ("azerbaijani", "az"),
    ("bashkir", "ba"),
    ("basque", "eu"),
    ("belarusian", "be"),
    ("bengali", "bn"),
    ("bosnian", "bs"),
    ("breton", "br"),
    ("bulgarian", "bg"),
    ("burmese", "my"),
    ("cantonese", "yue"),
    ("castilian", "es"),
    ("catalan", "ca"),
    ("chinese", "zh"),
    ("croatian", "hr"),
    ("czech", "cs"),
    ("danish", "da"),
    ("dutch", "nl"),
    ("english", "en"),
    ("estonian", "et"),
    ("faroese", "fo"),
    ("finnish", "fi"),
    ("flemish", "nl"),
    ("french", "fr"),
    ("galician", "gl"),
    ("georgian", "ka"),
    ("german", "de"),
    ("greek", "el"),
    ("gujarati", "gu"),
    ("haitian", "ht"),
    ("haitian creole", "ht"),
    ("hausa", "ha"),
    ("hawaiian", "haw"),
    ("hebrew", "he"),
    ("hindi", "hi"),
    ("hungarian", "hu"),
    ("icelandic", "is"),
    ("indonesian", "id"),
    ("italian", "it"),
    ("japanese", "ja"),
    ("javanese", "jw"),
    ("kannada", "kn"),
    ("kazakh", "kk"),
    ("khmer", "km"),
    ("korean", "ko"),
    ("lao", "lo"),
    ("latin", "la"),
    ("latvian", "lv"),
    ("letzeburgesch", "lb"),
    ("lingala", "ln"),
    ("lithuanian", "lt"),
    ("luxembourgish", "lb"),
    ("macedonian", "mk"),
    ("malagasy", "mg"),
    ("malay", "ms"),
    ("malayalam", "ml"),
    ("maltese", "mt"),
    ("mandarin", "zh"),
    ("maori", "mi"),
    ("marathi", "mr"),
    ("moldavian", "ro"),
    ("moldovan", "ro"),
    ("mongolian", "mn"),
    ("myanmar", "my"),
    ("nepali", "ne"),
    ("norwegian", "no"),
    ("nynorsk", "nn"),
    ("occitan", "oc"),
    ("panjabi", "pa"),
    ("pashto", "ps"),
    ("persian", "fa"),
    ("polish", "pl"),
    ("portuguese", "pt"),
    ("punjabi", "pa"),
    ("pushto", "ps"),
    ("romanian", "ro"),
    ("russian", "ru"),
    ("sanskrit", "sa"),
    ("serbian", "sr"),
    ("shona", "sn"),
    ("sindhi", "sd"),
    ("sinhala", "si"),
    ("sinhalese", "si"),
    ("slovak", "sk"),
    ("slovenian", "sl"),
    ("somali", "so"),
    ("spanish", "es"),
    ("sundanese", "su"),
    ("swahili", "sw"),
    ("swedish", "sv"),
    ("tagalog", "tl"),
    ("tajik", "tg"),
    ("tamil", "ta"),
    ("tatar", "tt"),
    ("telugu", "te"),
    ("thai", "th"),
    ("tibetan", "bo"),
    ("turkish", "tr"),
    ("turkmen", "tk"),
    ("ukrainian", "uk"),
    ("urdu", "ur"),
    ("uzbek", "uz"),
    ("valencian", "ca"),
    ("vietnamese", "vi"),
    ("welsh", "cy"),
    ("yiddish", "yi"),
    ("yoruba", "yo"),
];

/// The token of a language among those of a model, given its name (`german`), its code (`de`) or the token (`<|de|>`).
///
/// # Errors
/// If no such language is known, or the model has no token for it.
pub fn language_token(language: &str, tokens: &BTreeMap<String, u32>) -> Result<u32> {
    let given = language.to_lowercase();
    if let Some(id) = tokens.get(&given) {
        return Ok(*id);
    }
    let known = LANGUAGES.iter().find(|(name, code)| *name == given || *code == given);
    let Some((_, code)) = known else {
        let near = nearest(&given, LANGUAGES.iter().map(|it| it.0));
        let hint = near.first().map_or(String::new(), |it| format!("; did you mean `{it}`?"));
        return Err(PeftError::config(
            "language",
            format!("is `{language}`, expected a name or a code, such as `en`{hint}"),
        ));
    };
    tokens.get(&format!("<|{code}|>")).copied().ok_or_else(|| {
        let all: Vec<&str> = tokens.keys().map(|it| it.trim_matches(['<', '|', '>'])).collect();
        PeftError::config("language", format!("is `{language}`, and this model knows {}", all.join(", ")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_codes_and_tokens() {
        let tokens = BTreeMap::from([("<|en|>".to_owned(), 3), ("<|es|>".to_owned(), 4)]);
        for language in ["en", "English", "<|en|>"] {
            assert_eq!(language_token(language, &tokens).unwrap(), 3, "{language}");
        }
        // Two names of one language.
        assert_eq!(language_token("castilian", &tokens).unwrap(), 4);
        let error = language_token("englsh", &tokens).unwrap_err().to_string();
        assert!(error.contains("did you mean `english`?"), "{error}");
        assert!(language_token("de", &tokens).unwrap_err().to_string().ends_with("this model knows en, es"));
    }
}
