//! Sessions of `parallax prism repl`, typed by a pipe.

use tempfile::TempDir;

use crate::run;

/// What is printed, line by line.
fn session(typed: &str) -> Vec<String> {
    let dir = TempDir::new().unwrap();
    let ended = run(dir.path(), &["repl"], typed);
    assert_eq!((ended.code, ended.err.as_str()), (0, ""), "{}", ended.out);
    ended.out.lines().map(str::to_owned).collect()
}

#[test]
fn the_repl_keeps_what_was_typed() {
    let dir = TempDir::new().unwrap();
    let typed = "let x = 2 ~> 0.5\nfunction f(n) {\n  return n * x\n}\nf(4)\nlet t = random()\nprint(\"once\")\n\
                 nothing\nlet x = 3\n-x\nt == t\nlet max = 7\nllm(\"q\")\n:nope\n:reset\nx\n";
    let ended = run(dir.path(), &["repl"], typed);
    assert_eq!((ended.code, ended.err.as_str()), (0, ""));
    let lines: Vec<&str> = ended.out.lines().collect();
    assert_eq!(lines[0], "2 ~ 0.5");
    assert!(lines.contains(&"8 ~ 0.5") && lines.contains(&"-3 ~ –"), "{}", ended.out);
    assert!(lines.contains(&"true ~ –"), "an earlier outcome stays what it was: {}", ended.out);
    assert_eq!(lines.iter().filter(|line| **line == "once").count(), 1, "{}", ended.out);
    assert!(ended.out.contains("--> repl:1:1") && ended.out.contains(":nope is no command"), "{}", ended.out);
    assert!(ended.out.contains("this would ask a language model"), "{}", ended.out);
    assert_eq!(ended.out.matches("error[undefined_variable]").count(), 2, "{}", ended.out);
}

#[test]
fn a_return_ends_its_entry_and_not_the_session() {
    let lines = session("let x = 1\nreturn 7\nx\n");
    assert_eq!(lines, ["1 ~ –", "7 ~ –", "1 ~ –"]);
    let lines = session(
        "let x = 1\nif (x == 1) { x = 2; print(\"left\"); return 5; x = 9 }\nx\nif (x == 1) { return 5 }\n\
         const c = 3; let { d } = { d: 4 }; function f(n) { return n + c } return f(d)\nf(c + d + x)\n\
         return\nlet t = random(); return t\nt == t\nfor i in [1, 2] { if (i == 2) { return i } }\nx + 1\n",
    );
    let told: Vec<&str> = lines.iter().map(String::as_str).collect();
    assert_eq!(told[..8], ["1 ~ –", "left", "5 ~ –", "2 ~ –", "0 ~ –", "7 ~ –", "12 ~ –", "0 ~ –"]);
    assert!(told[8].starts_with("0.") || told[8] == "0 ~ –", "{lines:?}");
    assert_eq!(told[9..], ["true ~ –", "2 ~ –", "3 ~ –"]);
}

#[test]
fn an_import_says_why_it_cannot_be() {
    let lines = session("let t = now()\nimport {k} from \"./m\"\nt == t\n");
    assert!(lines[1].starts_with("error[import]"), "{lines:?}");
    assert!(lines.contains(&"1 | import {k} from \"./m\"".to_owned()), "{lines:?}");
    assert_eq!(lines.last().unwrap(), "true ~ –");
}

#[test]
fn earlier_entries_stay_what_they_were() {
    // Functions are hoisted above what calls them, and the random number would be asked for no more.
    let lines = session("let t = random()\nfunction random() { return 3 }\nt < 1\nrandom() < 1\n");
    assert!(lines[1].contains("changes what earlier entries have done"), "{lines:?}");
    assert_eq!(lines[2..], ["true ~ –", "true ~ –"]);
}

#[test]
fn what_lacks_its_end_goes_on_in_the_next_line() {
    let lines = session(
        "1 +\n2\nlet x =\n  3 *\n\n  4\nx\nlet y = [1, 2].\nlength\nif (y == 2)\n6\nfunction f(n)\n{ return n }\nf(8)\n",
    );
    let values = ["3 ~ –", "12 ~ –", "12 ~ –", "2 ~ –", "6 ~ –", "[Function: f] ~ –", "8 ~ –"];
    assert_eq!(lines, values);
    // A mistake is none of what lacks its end.
    let lines = session("1 + )\n2\n");
    assert_eq!(lines.last().unwrap(), "2 ~ –");
}

#[test]
fn errors_show_the_line_that_was_typed() {
    // The input ends, so nothing more can come.
    let lines = session("let x = 5\nx +\n");
    assert_eq!(
        lines[1..4],
        ["error[syntax]: expected an expression, found the end of the program", " --> repl:1:4", "  |"]
    );
    assert_eq!(lines[4], "1 | x +");
    let lines = session("let x = 5\nlet y = 6\nllm(\"q\")\n");
    assert!(lines[2].contains("this would ask a language model"), "{lines:?}");
    assert_eq!(lines[3..6], [" --> repl:1:1", "  |", "1 | llm(\"q\")"]);
}
