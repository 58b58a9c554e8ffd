//! `parallax prism lsp`: the Language Server Protocol 3.17 over standard input and output.

mod answers;
mod members;
mod text;
mod wire;

use std::{
    collections::HashMap,
    io::{BufRead, Write},
};

use serde_json::{Value as Json, json};

use self::text::{Encoding, Text};
use crate::exit::{Exit, Result};

/// The codes of JSON-RPC and of the protocol.
const PARSE_ERROR: i64 = -32700;
const INVALID_REQUEST: i64 = -32600;
const METHOD_NOT_FOUND: i64 = -32601;
const INVALID_PARAMS: i64 = -32602;
const SERVER_NOT_INITIALIZED: i64 = -32002;

pub(super) fn run() -> Result {
    serve(&mut std::io::stdin().lock(), &mut std::io::stdout().lock())
}

/// What an answer may be instead of a result.
struct Refusal(i64, String);

#[derive(Default)]
struct Server {
    initialized: bool,
    /// The client has asked to end; only `exit` may follow.
    shut_down: bool,
    encoding: Encoding,
    /// Open documents by URI.
    documents: HashMap<String, Text>,
    /// Messages that answer nothing, in order.
    outbox: Vec<Json>,
}

/// Answers messages until the client says `exit` or is gone.
fn serve(input: &mut impl BufRead, output: &mut impl Write) -> Result {
    let broken = |e: std::io::Error| Exit::failed(format!("the editor's connection broke: {e}"));
    let mut server = Server::default();
    while let Some(body) = wire::read(input).map_err(broken)? {
        let Ok(message) = serde_json::from_slice::<Json>(&body) else {
            wire::write(output, &refused(&Json::Null, PARSE_ERROR, "this is not JSON")).map_err(broken)?;
            continue;
        };
        if message["method"] == "exit" {
            break;
        }
        if let Some(answer) = server.message(&message) {
            wire::write(output, &answer).map_err(broken)?;
        }
        for message in server.outbox.drain(..) {
            wire::write(output, &message).map_err(broken)?;
        }
    }
    if server.shut_down { Ok(()) } else { Err(Exit::failed("the editor left without saying `shutdown`")) }
}

fn refused(id: &Json, code: i64, message: &str) -> Json {
    json!({"jsonrpc": "2.0", "id": id, "error": {"code": code, "message": message}})
}

impl Server {
    /// The answer to a request; a notification has none.
    fn message(&mut self, message: &Json) -> Option<Json> {
        let method = message["method"].as_str();
        let Some(id) = message.get("id") else {
            if let Some(method) = method.filter(|_| self.initialized && !self.shut_down) {
                self.notice(method, &message["params"]);
            }
            return None;
        };
        // An answer to a request of ours; there are none.
        if method.is_none() && (message.get("result").is_some() || message.get("error").is_some()) {
            return None;
        }
        let answer = match method {
            None => Err(Refusal(INVALID_REQUEST, "a request names its method".to_owned())),
            Some(method) => self.request(method, &message["params"]),
        };
        Some(match answer {
            Ok(result) => json!({"jsonrpc": "2.0", "id": id, "result": result}),
            Err(Refusal(code, message)) => refused(id, code, &message),
        })
    }

    fn request(&mut self, method: &str, params: &Json) -> std::result::Result<Json, Refusal> {
        if method == "initialize" && !self.initialized {
            self.initialized = true;
            return Ok(self.initialize(params));
        }
        if !self.initialized {
            let message = "`initialize` comes first".to_owned();
            return Err(Refusal(SERVER_NOT_INITIALIZED, message));
        }
        if self.shut_down {
            return Err(Refusal(INVALID_REQUEST, "nothing comes after `shutdown` but `exit`".to_owned()));
        }
        match method {
            "shutdown" => {
                self.shut_down = true;
                Ok(Json::Null)
            }
            "textDocument/hover" => self.at(params, answers::hover),
            "textDocument/definition" => self.at(params, answers::definition),
            "textDocument/completion" => self.at(params, answers::completion),
            "textDocument/formatting" => answers::formatting(self.document(params)?.1),
            other => Err(Refusal(METHOD_NOT_FOUND, format!("there is no method {other}"))),
        }
    }

    fn initialize(&mut self, params: &Json) -> Json {
        let offered = params["capabilities"]["general"]["positionEncodings"].as_array();
        if offered.is_some_and(|offered| offered.iter().any(|encoding| encoding == "utf-8")) {
            self.encoding = Encoding::Utf8;
        }
        json!({
            "capabilities": {
                "positionEncoding": self.encoding.name(),
                // Documents come whole: patterns are small.
                "textDocumentSync": {"openClose": true, "change": 1},
                "hoverProvider": true,
                "definitionProvider": true,
                "completionProvider": {"triggerCharacters": ["."]},
                "documentFormattingProvider": true,
            },
            "serverInfo": {"name": "parallax prism lsp", "version": env!("CARGO_PKG_VERSION")},
        })
    }

    /// Calls `answer` with the document, its URI and the byte offset that a request is about.
    fn at(
        &self,
        params: &Json,
        answer: impl FnOnce(&Text, &str, u32) -> Json,
    ) -> std::result::Result<Json, Refusal> {
        let (uri, text) = self.document(params)?;
        let position = &params["position"];
        let number = |key: &str| position[key].as_u64().and_then(|number| u32::try_from(number).ok());
        let (Some(line), Some(character)) = (number("line"), number("character")) else {
            return Err(Refusal(INVALID_PARAMS, "the position lacks its line or character".to_owned()));
        };
        Ok(answer(text, uri, text.offset(line, character)))
    }

    fn document<'a>(&'a self, params: &'a Json) -> std::result::Result<(&'a str, &'a Text), Refusal> {
        let uri = params["textDocument"]["uri"].as_str().unwrap_or_default();
        let unknown = || Refusal(INVALID_PARAMS, format!("document {uri:?} is not open"));
        Ok((uri, self.documents.get(uri).ok_or_else(unknown)?))
    }

    fn notice(&mut self, method: &str, params: &Json) {
        let Some(uri) = params["textDocument"]["uri"].as_str() else { return };
        let text = match method {
            "textDocument/didOpen" => params["textDocument"]["text"].as_str(),
            "textDocument/didChange" => {
                let changes = params["contentChanges"].as_array();
                changes.and_then(|changes| changes.last()).and_then(|change| change["text"].as_str())
            }
            "textDocument/didClose" => {
                self.documents.remove(uri);
                self.publish(uri, &json!([]));
                return;
            }
            _ => None,
        };
        if let Some(text) = text {
            let text = Text::new(text.to_owned(), self.encoding);
            let diagnostics = answers::diagnostics(&text, uri);
            self.documents.insert(uri.to_owned(), text);
            self.publish(uri, &diagnostics);
        }
    }

    fn publish(&mut self, uri: &str, diagnostics: &Json) {
        let params = json!({"uri": uri, "diagnostics": diagnostics});
        self.outbox
            .push(json!({"jsonrpc": "2.0", "method": "textDocument/publishDiagnostics", "params": params}));
    }
}
