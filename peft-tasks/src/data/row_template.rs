//! A prompt that a template words from the columns of a row.

use minijinja::Environment;
use peft_core::{PeftError, Result};

use crate::data::dataset::{Dataset, Row};
use crate::data::jinja;

/// A template of Jinja, whose variables are the columns: `{{ instruction }}` and a line break, `{{ input }}`.
#[derive(Debug)]
pub struct RowTemplate {
    source: String,
    environment: Environment<'static>,
}

impl RowTemplate {
    /// A template from its text. `\n` stands for a line break, which command lines make hard to write.
    ///
    /// # Errors
    /// The text is not a template.
    pub fn new(source: &str) -> Result<Self> {
        let (source, _) = jinja::prepare(&source.replace("\\n", "\n"), "trim")?;
        let mut environment = jinja::environment();
        environment.set_undefined_behavior(minijinja::UndefinedBehavior::Strict);
        environment.set_keep_trailing_newline(true);
        environment.template_from_str(&source).map_err(|it| PeftError::config("prompt_template", it))?;
        Ok(Self { source, environment })
    }

    /// The prompt of a row.
    ///
    /// # Errors
    /// The row lacks a column that the template reads.
    pub fn render(&self, data: &Dataset, row: &Row) -> Result<String> {
        let template = self.environment.template_from_str(&self.source);
        let text = template.and_then(|it| jinja::render(&it, &row.fields));
        text.map_err(|error| data.bad_row(row, format!("the prompt template says: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::dataset::TextRows;

    #[test]
    fn columns_are_variables() {
        let data = Dataset::parse("a.jsonl", r#"{"instruction": "Add", "input": "1 2"}"#, TextRows::Lines).unwrap();
        let render = |template: &str| RowTemplate::new(template).unwrap().render(&data, &data.rows[0]);
        let alpaca = "### Instruction:\\n{{ instruction }}\\n\\n{% if input %}### Input:\\n{{ input }}\\n\\n{% endif %}### Response:\\n";
        let expected = "### Instruction:\nAdd\n\n### Input:\n1 2\n\n### Response:\n";
        assert_eq!(render(alpaca).unwrap(), expected);
        let error = render("{{ question }}").unwrap_err().to_string();
        assert!(error.starts_with("a.jsonl, line 1: the prompt template says"), "{error}");
        assert!(RowTemplate::new("{% if %}").is_err());
    }
}
