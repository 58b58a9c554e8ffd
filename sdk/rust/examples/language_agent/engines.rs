//! Three independent ways to tell a text's language, each with the confidence that its library reports.
//!
//! - [whatlang](https://docs.rs/whatlang): scripts, then ranks of trigrams; the confidence grows with the
//!   text's length and with the distance to the second language.
//! - [lingua](https://docs.rs/lingua): rules on alphabets, then probabilities of 1- to 5-grams; the confidence
//!   is relative to the other languages. Its models are in the program and are unpacked when first needed.
//! - [langdetect](https://docs.rs/langdetect): naive Bayes over a seeded walk through 1- to 3-grams, after
//!   N. Shuyo's library; the confidence is the mean posterior of seven walks. Chosen as the third because it is
//!   pure Rust with its models inside. `langram` fetches its model from the network when it runs, `whichlang`
//!   reports no confidence, and `cld2` brings a C++ library.
//!
//! All three choose among [`LANGUAGES`], so that they can agree and disagree.

use std::{fmt, str::FromStr, sync::Arc};

use langdetect::{DetectorFactory, Seed};
use lingua::{Language as L, LanguageDetector, LanguageDetectorBuilder};
use parallax_sdk::{Agent, AgentError, Answer, Json, Profile, Task, agent, async_trait};
use whatlang::Lang as W;

/// A language as people and each engine name it.
pub(crate) struct Language {
    /// ISO 639-1.
    pub(crate) code: &'static str,
    pub(crate) name: &'static str,
    whatlang: W,
    lingua: L,
    langdetect: &'static str,
}

const fn language(
    code: &'static str,
    name: &'static str,
    whatlang: W,
    lingua: L,
    langdetect: &'static str,
) -> Language {
    Language { code, name, whatlang, lingua, langdetect }
}

/// The languages that the engines choose among.
pub(crate) const LANGUAGES: &[Language] = &[
    language("bg", "Bulgarian", W::Bul, L::Bulgarian, "bg"),
    language("cs", "Czech", W::Ces, L::Czech, "cs"),
    language("da", "Danish", W::Dan, L::Danish, "da"),
    language("de", "German", W::Deu, L::German, "de"),
    language("el", "Greek", W::Ell, L::Greek, "el"),
    language("en", "English", W::Eng, L::English, "en"),
    language("es", "Spanish", W::Spa, L::Spanish, "es"),
    language("fi", "Finnish", W::Fin, L::Finnish, "fi"),
    language("fr", "French", W::Fra, L::French, "fr"),
    language("it", "Italian", W::Ita, L::Italian, "it"),
    language("ja", "Japanese", W::Jpn, L::Japanese, "ja"),
    language("nb", "Norwegian", W::Nob, L::Bokmal, "no"),
    language("nl", "Dutch", W::Nld, L::Dutch, "nl"),
    language("pl", "Polish", W::Pol, L::Polish, "pl"),
    language("pt", "Portuguese", W::Por, L::Portuguese, "pt"),
    language("ru", "Russian", W::Rus, L::Russian, "ru"),
    language("sk", "Slovak", W::Slk, L::Slovak, "sk"),
    language("sv", "Swedish", W::Swe, L::Swedish, "sv"),
    language("tr", "Turkish", W::Tur, L::Turkish, "tr"),
    language("uk", "Ukrainian", W::Ukr, L::Ukrainian, "uk"),
];

/// Which library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Whatlang,
    Lingua,
    Langdetect,
}

impl Kind {
    pub(crate) const ALL: [Self; 3] = [Self::Whatlang, Self::Lingua, Self::Langdetect];
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Whatlang => "whatlang",
            Self::Lingua => "lingua",
            Self::Langdetect => "langdetect",
        })
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|kind| kind.to_string() == name);
        known.ok_or_else(|| format!("there is no engine {name:?}; choose whatlang, lingua or langdetect"))
    }
}

/// A language, and how sure the engine is of it: 0 to 1.
pub(crate) type Guess = (&'static Language, f64);

/// A library, ready to be asked.
pub(crate) enum Engine {
    Whatlang(whatlang::Detector),
    Lingua(Box<LanguageDetector>),
    Langdetect(Box<DetectorFactory>),
}

impl Engine {
    /// # Errors
    /// A model that the library does not have.
    pub(crate) fn open(kind: Kind) -> Result<Self, AgentError> {
        Ok(match kind {
            Kind::Whatlang => {
                let languages = LANGUAGES.iter().map(|language| language.whatlang).collect();
                Self::Whatlang(whatlang::Detector::with_allowlist(languages))
            }
            Kind::Lingua => {
                let languages: Vec<_> = LANGUAGES.iter().map(|language| language.lingua).collect();
                Self::Lingua(Box::new(LanguageDetectorBuilder::from_languages(&languages).build()))
            }
            Kind::Langdetect => {
                let profiles: Vec<_> = LANGUAGES.iter().map(|language| language.langdetect).collect();
                let mut factory = DetectorFactory::default();
                factory.load_builtin(&profiles).map_err(|(_, e)| e)?;
                factory.seed = Seed::Int(0);
                Self::Langdetect(Box::new(factory))
            }
        })
    }

    /// The languages that the engine considers, the likeliest first; none if it cannot tell.
    pub(crate) fn identify(&self, text: &str) -> Vec<Guess> {
        let known = |named: &dyn Fn(&Language) -> bool, confidence: f64| {
            LANGUAGES.iter().find(|language| named(language)).map(|language| (language, confidence))
        };
        let mut guesses: Vec<Guess> = match self {
            Self::Whatlang(detector) => {
                let found = detector.detect(text).into_iter();
                found.filter_map(|f| known(&|l| l.whatlang == f.lang(), f.confidence())).collect()
            }
            Self::Lingua(detector) => {
                let found = detector.compute_language_confidence_values(text).into_iter();
                found.filter_map(|(found, sure)| known(&|l| l.lingua == found, sure)).collect()
            }
            Self::Langdetect(factory) => {
                // Its only error here: no n-gram of any language is in the text.
                let found = factory.detect_langs(text).unwrap_or_default().into_iter();
                found.filter_map(|f| known(&|l| l.langdetect == f.lang, f.prob)).collect()
            }
        };
        guesses.retain(|(_, confidence)| *confidence > 0.0);
        guesses
    }
}

/// Identifies the language of `data.text`.
///
/// The answer's value is the bare ISO 639-1 code, so that two agents that agree answer the same; the
/// language's name is in the metadata. An answer is never invented: of a text that the engine cannot tell, the
/// value is null and the confidence 0.
pub(crate) struct LanguageAgent {
    profile: Profile,
    engine: Arc<Engine>,
}

impl LanguageAgent {
    /// An agent `language-<engine>`.
    ///
    /// # Errors
    /// As [`Engine::open`].
    pub(crate) fn open(kind: Kind) -> Result<Self, AgentError> {
        let profile = agent(format!("language-{kind}"))
            .name(format!("Language identification by {kind}"))
            .capability("language-identification")
            .label("engine", kind.to_string());
        Ok(Self { profile, engine: Arc::new(Engine::open(kind)?) })
    }
}

#[async_trait]
impl Agent for LanguageAgent {
    fn profile(&self) -> Profile {
        self.profile.clone()
    }

    async fn analyze(&self, task: Task) -> Result<Answer, AgentError> {
        let text = task.text("text")?.to_owned();
        if text.trim().is_empty() {
            return Err(AgentError::bad_input("data.text is empty; give it a text to identify"));
        }
        let engine = Arc::clone(&self.engine);
        let guesses = tokio::task::spawn_blocking(move || engine.identify(&text)).await?;
        let Some((language, confidence)) = guesses.first() else {
            return Ok(Answer::new(Json::Null, 0.0)?.reasoning("nothing in the text tells its language"));
        };
        // A sum of probabilities may exceed 1 by a rounding error.
        let mut answer = Answer::new(language.code, confidence.min(1.0))?.metadata("language", language.name);
        if let Some((second, confidence)) = guesses.get(1).filter(|(_, confidence)| *confidence >= 0.1) {
            answer = answer.uncertainty(format!("could be {}: {confidence:.2}", second.name));
        }
        Ok(answer.reasoning(format!("{} {confidence:.2}", language.name)))
    }
}
