//! Patterns about documents.

use serde_json::{Value as Json, json};

use crate::harness::{agent, equals, near, play, ranked, says};

fn field(result: &Json, name: &str) -> Json {
    let fields = result["decision"].as_array().expect("a list of fields");
    fields.iter().find(|field| field["field"] == name).expect(name).clone()
}

#[test]
fn extraction_asks_on_only_about_fields_that_are_open() {
    let input = json!({"document": "…", "fields": ["total", "date", "name"]});
    let played =
        play("DocumentExtraction", input.clone(), ranked("a b c d"), |call| match call.agent.as_str() {
            "a" => says(json!({"total": 10, "date": "May", "name": "X"}), 0.9),
            "b" => says(json!({"total": 10, "date": "June", "name": "X"}), 0.7),
            "c" => says(json!({"date": "June", "total": 99}), 0.6),
            _ => says(json!({}), 1.0),
        });
    // a and b agree on all but the date, c settles it, and d is not asked.
    assert_eq!(played.asked, "a b | c");
    assert_eq!(played.calls[2].data, json!({"document": "…", "fields": ["date"]}));
    let (total, date) = (field(&played.result, "total"), field(&played.result, "date"));
    assert_eq!((&total["value"], &total["agents"]), (&json!(10), &json!(["a", "b"])));
    near(total["confidence"].as_f64().unwrap(), 0.8);
    assert_eq!((&date["value"], &date["agents"]), (&json!("June"), &json!(["b", "c"])));
    near(date["confidence"].as_f64().unwrap(), 1.3 / 3.0);
    assert_eq!(played.result["review"], json!(["date"]));
    played.sure((0.8 + 1.3 / 3.0 + 0.8) / 3.0);

    let both = play("DocumentExtraction", input, ranked("a b c"), |_| {
        says(json!({"total": 1, "date": 2, "name": 3}), 0.9)
    });
    assert_eq!(both.asked, "a b");
    both.sure(0.9);
}

#[test]
fn a_field_that_nobody_confirms_counts_half() {
    let input = json!({"document": "…", "fields": ["total", "date"]});
    let played = play("DocumentExtraction", input, ranked("a b c"), |call| match call.agent.as_str() {
        "a" => says(json!({"total": 10, "date": null}), 0.9),
        "b" => None,
        _ => says("no idea", 0.9),
    });
    assert_eq!(played.asked, "a b | c");
    assert_eq!(field(&played.result, "date")["value"], Json::Null);
    near(field(&played.result, "total")["confidence"].as_f64().unwrap(), 0.45);
    played.sure(0.45 / 2.0);
    // A lone agent needs nobody to agree with it.
    let alone = play("DocumentExtraction", json!({"document": 1, "fields": ["x"]}), equals("a"), |_| {
        says(json!({"x": 1}), 0.8)
    });
    alone.sure(0.8);
}

#[test]
fn doubtful_aspects_are_looked_at_twice() {
    let agents = || vec![agent("a", 0.5, &["tone"]), agent("b", 0.9, &[]), agent("c", 0.7, &[])];
    let input = json!({"document": "…", "aspects": ["tone", "risks", "dates"]});
    let played = play("DocumentAnalysis", input, agents(), |call| {
        match (call.data["aspect"].as_str().unwrap(), call.agent.as_str()) {
            ("tone", "a") => says("calm", 0.7),
            ("risks", "b") => says("none", 0.6),
            ("risks", _) => says("many", 0.5),
            ("dates", "c") => None,
            _ => says("May", 0.4),
        }
    });
    // The tone goes to who can tell it; the others in turn, and to the most expert other the second time.
    assert_eq!(played.asked, "a b c | c b");
    assert_eq!(played.calls[0].task, "analyze tone");
    let confidences: Vec<_> =
        played.decision().as_array().unwrap().iter().map(|a| a["confidence"].as_f64().unwrap()).collect();
    near(confidences[0], 0.7);
    // The check disagreed.
    near(confidences[1], 0.3);
    near(confidences[2], 0.4);
    assert_eq!((&played.decision()[1]["answer"], &played.result["calls"]), (&json!("none"), &json!(5)));
    played.sure(1.4 / 3.0);

    let sure = play("DocumentAnalysis", json!({"document": "…"}), agents(), |_| says("x", 0.9));
    assert_eq!(sure.asked, "a b c");
    sure.sure(0.9);
    let lost = play("DocumentAnalysis", json!({"document": "…", "aspects": ["tone"]}), agents(), |_| None);
    assert_eq!(
        (lost.decision(), lost.asked.as_str(), &lost.result["missing"]),
        (&json!([]), "a | b", &json!(["tone"]))
    );
    lost.sure(0.0);
}
