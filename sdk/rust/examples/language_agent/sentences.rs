//! What the demo asks about: real sentences, and some that are hard.

/// A text and the languages that are right answers: several where the text belongs to several.
pub(crate) struct Sentence {
    pub(crate) text: &'static str,
    pub(crate) languages: &'static [&'static str],
    /// What makes it hard, if it is.
    pub(crate) hard: &'static str,
}

const fn plain(language: &'static [&'static str], text: &'static str) -> Sentence {
    Sentence { text, languages: language, hard: "" }
}

const fn hard(hard: &'static str, languages: &'static [&'static str], text: &'static str) -> Sentence {
    Sentence { text, languages, hard }
}

pub(crate) const SENTENCES: &[Sentence] = &[
    // Openings of books.
    plain(&["en"], "It was a bright cold day in April, and the clocks were striking thirteen."),
    plain(
        &["de"],
        "Jemand musste Josef K. verleumdet haben, denn ohne dass er etwas Böses getan hätte, wurde er eines Morgens verhaftet.",
    ),
    plain(&["fr"], "Longtemps, je me suis couché de bonne heure."),
    plain(
        &["es"],
        "En un lugar de la Mancha, de cuyo nombre no quiero acordarme, no ha mucho tiempo que vivía un hidalgo.",
    ),
    plain(&["it"], "Nel mezzo del cammin di nostra vita mi ritrovai per una selva oscura."),
    plain(
        &["ru"],
        "Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива по-своему.",
    ),
    plain(&["ja"], "国境の長いトンネルを抜けると雪国であった。"),
    // Article 1 of the Universal Declaration of Human Rights.
    plain(&["pt"], "Todos os seres humanos nascem livres e iguais em dignidade e em direitos."),
    plain(&["nl"], "Alle mensen worden vrij en gelijk in waardigheid en rechten geboren."),
    plain(&["fi"], "Kaikki ihmiset syntyvät vapaina ja tasavertaisina arvoltaan ja oikeuksiltaan."),
    plain(&["sv"], "Alla människor är födda fria och lika i värde och rättigheter."),
    plain(&["pl"], "Wszyscy ludzie rodzą się wolni i równi pod względem swej godności i swych praw."),
    plain(&["el"], "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα."),
    plain(&["tr"], "Bütün insanlar hür, haysiyet ve haklar bakımından eşit doğarlar."),
    hard("close to Norwegian", &["da"], "Alle mennesker er født frie og lige i værdighed og rettigheder."),
    hard(
        "close to Danish",
        &["nb"],
        "Alle mennesker er født frie og med samme menneskeverd og menneskerettigheter.",
    ),
    hard("close to Slovak", &["cs"], "Všichni lidé rodí se svobodní a sobě rovní co do důstojnosti a práv."),
    hard(
        "close to Czech",
        &["sk"],
        "Všetci ľudia sa rodia slobodní a sebe rovní, čo sa týka ich dôstojnosti a práv.",
    ),
    hard("close to Russian", &["uk"], "Всі люди народжуються вільними і рівними у своїй гідності та правах."),
    hard("close to Russian", &["bg"], "Всички хора се раждат свободни и равни по достойнство и права."),
    // Short.
    hard("one word of nine languages", &["cs", "da", "de", "fi", "nb", "nl", "pl", "sk", "sv"], "Ja"),
    hard("one word", &["it"], "Buongiorno"),
    hard("one word", &["fi"], "Kiitos"),
    hard("two words", &["bg"], "Добър ден"),
    hard("short", &["pt"], "Não sei."),
    hard("short", &["es"], "¿Dónde está la casa?"),
    hard("the same in two languages", &["da", "nb"], "Jeg kan ikke komme i dag."),
    hard("short, close to Dutch", &["de"], "Was ist das?"),
    // Mixed.
    hard("mixed", &["de", "en"], "Das Meeting ist um zehn, please bring your laptop."),
    hard("mixed", &["fr", "en"], "Je suis désolé, but I really have to go now."),
    hard("mixed", &["es", "pt"], "Buenos días, tudo bem com você?"),
];
