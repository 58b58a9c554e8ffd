//! `@input { … }`: the JSON Schema that a pattern's input has to fit.

use jsonschema::Validator;
use serde_json::Value as Json;

/// So many misfits are named at once.
const MAX_NAMED: usize = 8;
/// Texts are shown up to this length, in bytes.
const MAX_SHOWN: usize = 80;

/// The text of an `@input` while its lines are gathered: it goes on until the braces balance.
pub(super) struct Gathering {
    /// Where it began.
    pub(super) line: usize,
    text: String,
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl Gathering {
    pub(super) fn new(line: usize) -> Self {
        Self { line, text: String::new(), depth: 0, in_string: false, escaped: false }
    }

    /// Takes one more line; true once the braces balance.
    ///
    /// # Errors
    /// Text before the first brace or after the last.
    pub(super) fn take(&mut self, line: &str) -> Result<bool, String> {
        if !self.text.is_empty() {
            self.text.push('\n');
        } else if !line.starts_with('{') {
            return Err(format!("is a JSON Schema in braces, not \"{line}\""));
        }
        self.text.push_str(line);
        for (at, c) in line.char_indices() {
            match c {
                _ if self.escaped => self.escaped = false,
                '\\' if self.in_string => self.escaped = true,
                '"' => self.in_string = !self.in_string,
                '{' if !self.in_string => self.depth += 1,
                '}' if !self.in_string => self.depth -= 1,
                _ => {}
            }
            if self.depth == 0 {
                let rest = line[at + 1..].trim();
                let ended = format!("ends before \"{rest}\"");
                return if rest.is_empty() { Ok(true) } else { Err(ended) };
            }
        }
        Ok(false)
    }

    /// What was gathered, as a schema.
    ///
    /// # Errors
    /// The line, and what is wrong there: no JSON, or no JSON Schema.
    pub(super) fn schema(&self) -> Result<Json, (usize, String)> {
        let schema = serde_json::from_str(&self.text).map_err(|e| {
            let whole = e.to_string();
            let what = whole.split(" at line ").next().unwrap_or_default();
            (self.line + e.line().max(1) - 1, format!("is not JSON: {what}"))
        })?;
        compile(&schema).map_err(|problem| (self.line, format!("is not a JSON Schema: {problem}")))?;
        Ok(schema)
    }
}

/// A schema, ready to check inputs. Nothing is ever fetched: a schema that refers to another document is refused.
pub(super) fn compile(schema: &Json) -> Result<Validator, String> {
    let place = |pointer: &str| if pointer.is_empty() { String::new() } else { format!("{pointer}: ") };
    jsonschema::meta::validate(schema).map_err(|e| format!("{}{e}", place(e.instance_path().as_str())))?;
    jsonschema::validator_for(schema).map_err(|e| format!("{}{e}", place(e.schema_path().as_str())))
}

/// What does not fit, each with its JSON pointer.
pub(super) fn misfits(validator: &Validator, input: &Json) -> Vec<String> {
    let mut errors = validator.iter_errors(input);
    let named = errors.by_ref().take(MAX_NAMED).map(|e| {
        let pointer = e.instance_path().as_str();
        let what = match e.instance().as_ref() {
            // Whole documents have no place in a message.
            Json::Array(_) | Json::Object(_) => e.masked_with("it").to_string(),
            Json::String(text) if text.len() > MAX_SHOWN => e.masked_with("it").to_string(),
            _ => e.to_string(),
        };
        format!("{}: {}", if pointer.is_empty() { "the input" } else { pointer }, what)
    });
    let mut named: Vec<String> = named.collect();
    match errors.count() {
        0 => {}
        more => named.push(format!("and {more} more")),
    }
    named
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn braces_in_texts_do_not_count() {
        let mut gathering = Gathering::new(1);
        assert_eq!(gathering.take(r#"{ "description": "a \"}\" and a {","#), Ok(false));
        assert_eq!(gathering.take(r#""type": "object" }"#), Ok(true));
        assert_eq!(gathering.schema().unwrap()["type"], "object");
    }

    #[test]
    fn every_misfit_is_named_with_its_pointer() {
        let schema = json!({
            "type": "object",
            "required": ["text"],
            "properties": {"target": {"type": "number", "maximum": 1}, "ids": {"items": {"type": "string"}}}
        });
        let validator = compile(&schema).unwrap();
        assert!(misfits(&validator, &json!({"text": "", "target": 0.5})).is_empty());
        assert_eq!(
            misfits(&validator, &json!({"target": 7, "ids": ["a", 5]})),
            [
                "the input: \"text\" is a required property",
                "/target: 7 is greater than the maximum of 1",
                "/ids/1: 5 is not of type \"string\"",
            ]
        );
        assert_eq!(misfits(&validator, &json!(null)), ["the input: null is not of type \"object\""]);
    }

    #[test]
    fn nothing_is_fetched() {
        for reference in ["https://example.com/schema.json", "file:///etc/passwd"] {
            assert!(compile(&json!({"$ref": reference})).is_err(), "{reference}");
        }
    }
}
