//! The language server, by a client that says what editors say.

use std::{
    io::{BufRead, BufReader, Read, Write},
    process::{Child, ChildStdin, ChildStdout, Stdio},
};

use serde_json::{Value as Json, json};
use tempfile::TempDir;

use crate::prism;

const URI: &str = "file:///pattern/test.prism";

struct Client {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    next: u64,
    _dir: TempDir,
}

impl Client {
    fn start() -> Self {
        let dir = TempDir::new().unwrap();
        let mut command = prism(dir.path(), &["lsp"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (input, output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Self { child, input, output, next: 0, _dir: dir }
    }

    fn initialized() -> Self {
        let mut client = Self::start();
        let answer = client.ask("initialize", json!({"capabilities": {}}));
        assert_eq!(answer["result"]["capabilities"]["positionEncoding"], "utf-16");
        client.tell("initialized", json!({}));
        client
    }

    fn raw(&mut self, body: &str) {
        write!(self.input, "Content-Length: {}\r\n\r\n{body}", body.len()).unwrap();
        self.input.flush().unwrap();
    }

    fn tell(&mut self, method: &str, params: Json) {
        self.raw(&json!({"jsonrpc": "2.0", "method": method, "params": params}).to_string());
    }

    fn ask(&mut self, method: &str, params: Json) -> Json {
        self.next += 1;
        let id = self.next;
        self.raw(&json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params}).to_string());
        let answer = self.hear();
        assert_eq!(answer["id"], id, "{answer}");
        answer
    }

    fn hear(&mut self) -> Json {
        let mut length = 0;
        loop {
            let mut line = String::new();
            assert_ne!(self.output.read_line(&mut line).unwrap(), 0, "the server is gone");
            match line.trim().split_once(": ") {
                Some(("Content-Length", value)) => length = value.parse().unwrap(),
                Some(_) => {}
                None => break,
            }
        }
        let mut body = vec![0; length];
        self.output.read_exact(&mut body).unwrap();
        serde_json::from_slice(&body).unwrap()
    }

    /// Opens a document, and gives what is wrong with it.
    fn open(&mut self, text: &str) -> Json {
        let document = json!({"uri": URI, "languageId": "prism", "version": 1, "text": text});
        self.tell("textDocument/didOpen", json!({"textDocument": document}));
        self.published()
    }

    fn published(&mut self) -> Json {
        let message = self.hear();
        assert_eq!(message["method"], "textDocument/publishDiagnostics");
        assert_eq!(message["params"]["uri"], URI);
        message["params"]["diagnostics"].clone()
    }

    fn at(&mut self, method: &str, line: u32, character: u32) -> Json {
        let position = json!({"line": line, "character": character});
        let params = json!({"textDocument": {"uri": URI}, "position": position});
        self.ask(&format!("textDocument/{method}"), params)["result"].clone()
    }

    fn end(mut self) -> i32 {
        assert_eq!(self.ask("shutdown", Json::Null)["result"], Json::Null);
        self.tell("exit", Json::Null);
        self.child.wait().unwrap().code().unwrap()
    }
}

fn labels(items: &Json) -> Vec<&str> {
    items.as_array().unwrap().iter().map(|item| item["label"].as_str().unwrap()).collect()
}

#[test]
fn diagnostics_follow_the_text() {
    let mut client = Client::initialized();
    let wrong = client.open("let a = 1\nlet s = \"é😀\" )\n");
    assert_eq!(wrong[0]["severity"], 1, "{wrong}");
    // In UTF-16, 😀 counts twice.
    assert_eq!(wrong[0]["range"]["start"], json!({"line": 1, "character": 14}), "{wrong}");
    let change = json!({"textDocument": {"uri": URI, "version": 2}, "contentChanges": [{"text": "let a = 1\nprint(a)\n"}]});
    client.tell("textDocument/didChange", change);
    let now = client.published();
    assert!(now.as_array().unwrap().iter().all(|d| d["severity"] != 1), "{now}");
    client.tell("textDocument/didClose", json!({"textDocument": {"uri": URI}}));
    assert_eq!(client.published(), json!([]));
    assert_eq!(client.end(), 0);
}

#[test]
fn names_are_explained_and_found() {
    let mut client = Client::initialized();
    client.open(
        "function twice(n) {\n  return n * 2\n}\nlet e = \"😀\" + twice(2)\nmajorityVote([1]).length\n",
    );
    let hover = client.at("hover", 3, 17);
    assert!(hover["contents"]["value"].as_str().unwrap().contains("function twice(n)"), "{hover}");
    let place = client.at("definition", 3, 17);
    assert_eq!(place["uri"], URI);
    assert_eq!(place["range"]["start"], json!({"line": 0, "character": 9}));
    assert_eq!(client.at("definition", 1, 9)["range"]["start"], json!({"line": 0, "character": 15}));
    let hover = client.at("hover", 4, 3);
    assert!(hover["contents"]["value"].as_str().unwrap().contains("majorityVote("), "{hover}");
    let hover = client.at("hover", 4, 20);
    assert!(hover["contents"]["value"].as_str().unwrap().contains("length"), "{hover}");
    assert_eq!(client.at("definition", 4, 3), Json::Null);
    assert_eq!(client.at("hover", 99, 99), Json::Null);
    assert_eq!(client.end(), 0);
}

#[test]
fn completion_knows_names_and_members() {
    let mut client = Client::initialized();
    client.open("let total = { size: 1 }\nfunction f(inner) {\n  \n}\ntotal.\n");
    let inside = client.at("completion", 2, 2);
    let names = labels(&inside);
    for name in ["inner", "total", "f", "majorityVote", "agentList", "uncertain"] {
        assert!(names.contains(&name), "{name}");
    }
    assert!(!labels(&client.at("completion", 4, 0)).contains(&"inner"));
    let members = client.at("completion", 4, 6);
    let names = labels(&members);
    assert!(names.contains(&"map") && names.contains(&"size") && !names.contains(&"uncertain"), "{names:?}");
    assert_eq!(client.end(), 0);
}

#[test]
fn completion_knows_what_an_agent_has() {
    let has = ["id", "name", "capabilities", "expertise", "confidence", "labels", "analyze"];
    let mut client = Client::initialized();
    for (text, line, character) in [
        ("agentList[0].", 0, 13),
        ("agents[0].\nlet x = 1\n", 0, 10),
        ("print(agents[0].na)\nlet = broken", 0, 18),
        ("for agent in agents {\n  agent.\n}\n", 1, 8),
        ("let all = agents.map(a => a.)\n", 0, 28),
        ("let one = agents[1]\none.", 1, 4),
    ] {
        client.open(text);
        let members = client.at("completion", line, character);
        assert_eq!(labels(&members), has, "{text}");
    }
    client.open("agents.\nagents[0].id");
    let members = client.at("completion", 0, 7);
    let names = labels(&members);
    assert!(names.contains(&"map") && !names.contains(&"labels"), "{names:?}");
    assert_eq!(client.end(), 0);
}

#[test]
fn the_header_of_a_pattern_is_checked() {
    let mut client = Client::initialized();
    let wrong =
        client.open("/**\n * @name x\n * @version one\n * @bogus x\n */\nagentResults.length ~> 0.5\n");
    let places: Vec<_> =
        wrong.as_array().unwrap().iter().map(|d| (&d["range"]["start"]["line"], &d["code"])).collect();
    assert_eq!(places, [(&json!(2), &json!("header")), (&json!(3), &json!("header"))], "{wrong}");
    assert!(wrong[1]["message"].as_str().unwrap().contains("@bogus is unknown"), "{wrong}");
    // A module has none, and may begin with a comment all the same.
    assert_eq!(
        client.open("/** Halves. @see name */\nexport function half(x) { return x / 2 }\n"),
        json!([])
    );
    // Warnings stand beside a header that is right.
    let doubtful = client.open("/**\n * @name x\n * @version 1.0.0\n */\n1 ~> 0.5\n");
    assert_eq!(doubtful[0]["code"], "unused_agents", "{doubtful}");
    assert_eq!(client.end(), 0);
}

#[test]
fn documents_are_formatted() {
    let mut client = Client::initialized();
    client.open("let  a=1");
    let params = json!({"textDocument": {"uri": URI}, "options": {"tabSize": 2, "insertSpaces": true}});
    let edits = client.ask("textDocument/formatting", params)["result"].clone();
    assert_eq!(edits[0]["newText"], "let a = 1\n");
    assert_eq!(edits[0]["range"]["end"], json!({"line": 0, "character": 8}));
    assert_eq!(client.end(), 0);
}

#[test]
fn mistakes_of_the_client_are_answered() {
    let mut client = Client::start();
    assert_eq!(client.at("hover", 0, 0), Json::Null);
    assert_eq!(client.ask("textDocument/hover", json!({}))["error"]["code"], -32002);
    client.ask("initialize", json!({}));
    client.raw("not json");
    assert_eq!(client.hear()["error"]["code"], -32700);
    assert_eq!(client.ask("textDocument/nothing", json!({}))["error"]["code"], -32601);
    assert_eq!(client.ask("textDocument/hover", json!({}))["error"]["code"], -32602);
    client.tell("$/unknown", json!({}));
    client.raw("{\"jsonrpc\":\"2.0\",\"id\":77}");
    assert_eq!(client.hear()["error"]["code"], -32600);
    assert_eq!(client.end(), 0);

    let mut rude = Client::initialized();
    rude.tell("exit", Json::Null);
    assert_eq!(rude.child.wait().unwrap().code(), Some(1));
}
