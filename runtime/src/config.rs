//! Layered settings: defaults, a TOML file, the environment, flags; in that order, the last one counts.
//!
//! Knows nothing of what is configured: [`load`] takes any type that serde reads, and remembers where each
//! value came from.

use std::{collections::BTreeMap, fmt, path::Path};

use serde::{Serialize, de::DeserializeOwned};
use thiserror::Error;
use toml::{Table, Value};

/// Prefix of the environment's keys: `PARALLAX_CONTROL_PLANE__GRPC` is `control_plane.grpc`.
pub const ENV_PREFIX: &str = "PARALLAX_";

/// What is wrong with the settings, and where it stands.
#[derive(Debug, Error)]
pub enum ConfigError {
    #[error("cannot read the config file {path}: {source}")]
    Read { path: String, source: std::io::Error },
    #[error("config file {path}: {message}")]
    Syntax { path: String, message: String },
    #[error("unknown setting {key} in {origin}{hint}")]
    Unknown { key: String, origin: Origin, hint: String },
    #[error("setting {key} in {origin}: {message}")]
    Value { key: String, origin: Origin, message: String },
}

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    Default,
    File(String),
    Env(String),
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("the defaults"),
            Self::File(path) => write!(f, "the file {path}"),
            Self::Env(name) => write!(f, "the environment ({name})"),
            Self::Flag(name) => write!(f, "the flag {name}"),
        }
    }
}

/// Settings, and the origin of each by its dotted key.
#[derive(Debug)]
pub struct Loaded<T> {
    pub settings: T,
    pub origins: BTreeMap<String, (Value, Origin)>,
}

/// A flag that was given: its name, the dotted key it sets, and its text.
pub type Flag<'a> = (&'a str, &'a str, String);

/// Reads all layers over `defaults`.
///
/// # Errors
/// A file that cannot be read or parsed, a key that no setting has, a value of the wrong kind.
pub fn load<T: Serialize + DeserializeOwned>(
    defaults: &T,
    file: Option<&Path>,
    env: impl IntoIterator<Item = (String, String)>,
    flags: &[Flag<'_>],
) -> Result<Loaded<T>, ConfigError> {
    let mut known = BTreeMap::new();
    let defaults = Table::try_from(defaults).expect("settings are a table of plain values");
    flatten("", defaults, &mut |key, value| _ = known.insert(key, (value, Origin::Default)));
    let defaults = known.clone();
    if let Some(path) = file {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: name.clone(), source })?;
        let table: Table = text.parse().map_err(|e: toml::de::Error| ConfigError::Syntax {
            path: name.clone(),
            message: e.to_string(),
        })?;
        let mut given = Vec::new();
        flatten("", table, &mut |key, value| given.push((key, value)));
        for (key, value) in given {
            set(&mut known, &key, value, Origin::File(name.clone()))?;
        }
    }
    for (name, text) in env {
        let Some(path) = name.strip_prefix(ENV_PREFIX) else { continue };
        let key = path.to_lowercase().replace("__", ".");
        // A name without a section may belong to another tool of ours (PARALLAX_API_URL, PARALLAX_REGISTRY).
        if known.contains_key(&key) || key.contains('.') {
            set_text(&mut known, &key, &text, Origin::Env(name))?;
        }
    }
    for (name, key, text) in flags {
        set_text(&mut known, key, text, Origin::Flag((*name).to_owned()))?;
    }
    let settings = T::deserialize(nested(&known)).map_err(|e| culprit::<T>(&defaults, &known, &e))?;
    Ok(Loaded { settings, origins: known })
}

type Known = BTreeMap<String, (Value, Origin)>;

fn nested(known: &Known) -> Table {
    let mut table = Table::new();
    for (key, (value, _)) in known {
        insert(&mut table, key, value.clone());
    }
    table
}

/// Which value it is that the settings do not take: the one that they do not take over the defaults either.
fn culprit<T: DeserializeOwned>(defaults: &Known, known: &Known, error: &toml::de::Error) -> ConfigError {
    for (key, (value, origin)) in known.iter().filter(|(_, (_, origin))| *origin != Origin::Default) {
        let mut alone = defaults.clone();
        alone.insert(key.clone(), (value.clone(), origin.clone()));
        if let Err(e) = T::deserialize(nested(&alone)) {
            let message = format!("{value} cannot stand: {}", e.message());
            return ConfigError::Value { key: format!("\"{key}\""), origin: origin.clone(), message };
        }
    }
    let message = error.message().to_owned();
    ConfigError::Value { key: "(all)".to_owned(), origin: Origin::Default, message }
}

fn set(known: &mut Known, key: &str, value: Value, origin: Origin) -> Result<(), ConfigError> {
    let Some((current, from)) = known.get_mut(key) else {
        let near = known.keys().filter(|k| similar(k, key)).map(|k| format!("\"{k}\"")).collect::<Vec<_>>();
        let hint =
            if near.is_empty() { String::new() } else { format!("; did you mean {}?", near.join(", ")) };
        return Err(ConfigError::Unknown { key: format!("\"{key}\""), origin, hint });
    };
    // A whole number is one too.
    let value = match (&*current, value) {
        (Value::Float(_), Value::Integer(whole)) => Value::Float(whole as f64),
        (_, value) => value,
    };
    if !current.same_type(&value) {
        let message = format!("expected {}, found {}", current.type_str(), value.type_str());
        return Err(ConfigError::Value { key: format!("\"{key}\""), origin, message });
    }
    (*current, *from) = (value, origin);
    Ok(())
}

/// Text from outside takes the kind that the default has.
fn set_text(known: &mut Known, key: &str, text: &str, origin: Origin) -> Result<(), ConfigError> {
    let parsed = match known.get(key) {
        Some((Value::Integer(_), _)) => text.parse().ok().map(Value::Integer),
        Some((Value::Float(_), _)) => text.parse().ok().map(Value::Float),
        Some((Value::Boolean(_), _)) => text.parse().ok().map(Value::Boolean),
        Some((Value::Array(_), _)) => {
            Some(Value::Array(text.split(',').filter(|t| !t.is_empty()).map(Value::from).collect()))
        }
        _ => Some(Value::String(text.to_owned())),
    };
    // What does not parse goes on as text, and is refused with the kind that was expected.
    set(known, key, parsed.unwrap_or_else(|| Value::String(text.to_owned())), origin)
}

fn flatten(prefix: &str, table: Table, each: &mut impl FnMut(String, Value)) {
    for (key, value) in table {
        let key = if prefix.is_empty() { key } else { format!("{prefix}.{key}") };
        match value {
            Value::Table(inner) => flatten(&key, inner, each),
            other => each(key, other),
        }
    }
}

fn insert(table: &mut Table, key: &str, value: Value) {
    match key.split_once('.') {
        None => _ = table.insert(key.to_owned(), value),
        Some((section, rest)) => {
            let inner = table.entry(section).or_insert_with(|| Value::Table(Table::new()));
            insert(inner.as_table_mut().expect("a section holds no plain value"), rest, value);
        }
    }
}

/// Same last part, or the same letters but for two.
fn similar(a: &str, b: &str) -> bool {
    let last = |key: &str| key.rsplit('.').next().unwrap_or_default().to_owned();
    last(a) == last(b) || crate::nearest::distance(a, b) <= 2
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Serialize, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Settings {
        data_dir: String,
        plane: Plane,
    }

    #[derive(Debug, Serialize, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Plane {
        port: u16,
        local: bool,
    }

    fn defaults() -> Settings {
        Settings { data_dir: "d".into(), plane: Plane { port: 1, local: true } }
    }

    fn env(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn the_last_layer_counts_and_is_remembered() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "data_dir = \"f\"\n[plane]\nport = 2").unwrap();
        let env = env(&[("PARALLAX_PLANE__PORT", "3"), ("PARALLAX_API_URL", "x"), ("HOME", "h")]);
        let flags = [("--port", "plane.port", "4".to_owned())];
        let loaded = load(&defaults(), Some(file.path()), env, &flags).unwrap();
        let expected = Settings { data_dir: "f".into(), plane: Plane { port: 4, local: true } };
        assert_eq!(loaded.settings, expected);
        assert_eq!(loaded.origins["plane.port"].1, Origin::Flag("--port".into()));
        assert_eq!(loaded.origins["plane.local"].1, Origin::Default);
    }

    #[test]
    fn mistakes_are_named_with_place_and_cure() {
        let refuse =
            |pairs: &[(&str, &str)]| load(&defaults(), None, env(pairs), &[]).unwrap_err().to_string();
        let message = refuse(&[("PARALLAX_PLANE__PROT", "3")]);
        assert!(
            message.contains("plane.prot") && message.contains("did you mean \"plane.port\""),
            "{message}"
        );
        let message = refuse(&[("PARALLAX_PLANE__PORT", "many")]);
        assert!(message.contains("PARALLAX_PLANE__PORT") && message.contains("integer"), "{message}");
        let message = refuse(&[("PARALLAX_PLANE__LOCAL", "true"), ("PARALLAX_PLANE__PORT", "70000")]);
        assert!(
            message.contains("\"plane.port\" in the environment (PARALLAX_PLANE__PORT): 70000"),
            "{message}"
        );
        assert!(!message.contains('\n'), "{message}");
    }
}
