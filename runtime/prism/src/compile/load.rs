//! Finds, lexes and parses the program's files.

use super::CompileOptions;
use crate::ast::{Export, Import, StmtKind, Tree};
use crate::diagnostic::{Diagnostic, File, Kind, Span};
use crate::lexer::{self, Names, Word};
use crate::parser;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// More files than this are a mistake, or an attack.
const MAX_FILES: usize = 500;

pub(crate) struct Loaded {
    pub(crate) tree: Tree,
    /// What the file imports, in order: the path as written, and the file that it leads to.
    pub(crate) imports: Vec<(Arc<str>, Option<usize>)>,
}

impl Loaded {
    pub(crate) fn module(&self, path: &str) -> Option<usize> {
        self.imports.iter().find(|(p, _)| **p == *path).and_then(|(_, module)| *module)
    }
}

pub(crate) struct Files {
    pub(crate) modules: Vec<Loaded>,
    pub(crate) files: Vec<File>,
    pub(crate) idents: u32,
}

pub(crate) fn load(
    source: &str,
    options: &CompileOptions,
    names: &mut Names,
) -> Result<Files, Vec<Diagnostic>> {
    let (files, errors) = load_all(source, options, names);
    if errors.is_empty() { Ok(files) } else { Err(errors) }
}

/// What can be read, and why the rest cannot.
pub(crate) fn load_all(
    source: &str,
    options: &CompileOptions,
    names: &mut Names,
) -> (Files, Vec<Diagnostic>) {
    names.intern(Word::Agents.text());
    let empty = BTreeMap::new();
    let available = options.modules.as_ref().unwrap_or(&empty);
    let mut files = vec![File { name: Arc::from(options.name.as_str()), source: Arc::from(source) }];
    let mut numbers: HashMap<String, usize> = HashMap::from([(options.name.clone(), 0)]);
    let (mut modules, mut errors, mut idents) = (Vec::new(), Vec::new(), 0);
    while modules.len() < files.len() {
        let number = modules.len();
        let tree = parse(number as u32, &files, names, &mut idents, &mut errors);
        let mut imports: Vec<(Arc<str>, Option<usize>)> = Vec::new();
        for path in imported(&tree) {
            if imports.iter().any(|(p, _)| *p == path) {
                continue;
            }
            let found = find(&path, &files[number].name, available).map(|(path, source)| {
                *numbers.entry(path.clone()).or_insert_with(|| {
                    files.push(File { name: Arc::from(path), source: Arc::from(source) });
                    files.len() - 1
                })
            });
            imports.push((path, found));
        }
        modules.push(Loaded { tree, imports });
        if files.len() > MAX_FILES {
            let message = format!("the program imports more than {MAX_FILES} files");
            errors.push(Diagnostic::new("syntax", Kind::Parse, message, Span::default(), &files));
            break;
        }
    }
    (Files { modules, files, idents }, errors)
}

fn parse(
    number: u32,
    files: &[File],
    names: &mut Names,
    idents: &mut u32,
    errors: &mut Vec<Diagnostic>,
) -> Tree {
    let source = &files[number as usize].source;
    let none = || Tree { stmts: Vec::new(), lost: Vec::new(), span: Span::default() };
    if source.len() > (u32::MAX / 2) as usize {
        let span = Span { file: number, start: 0, end: 0 };
        errors.push(Diagnostic::new("syntax", Kind::Parse, "the file is too large", span, files));
        return none();
    }
    let (tokens, lex_errors) = lexer::lex(source, number, names);
    errors.extend(lex_errors.into_iter().map(|e| {
        Diagnostic::new("lex", Kind::Parse, e.message, e.span, files).hint(e.hint.map(str::to_string))
    }));
    let (tree, syntax_errors) = parser::parse(&tokens, names, idents);
    errors.extend(
        syntax_errors
            .into_iter()
            .map(|e| Diagnostic::new("syntax", Kind::Parse, e.message, e.span, files).hint(e.hint)),
    );
    tree
}

fn imported(tree: &Tree) -> impl Iterator<Item = Arc<str>> + '_ {
    tree.stmts.iter().filter_map(|stmt| match &stmt.kind {
        StmtKind::Import(Import { from, .. })
        | StmtKind::Export(Export::All { from, .. } | Export::From { from, .. }) => Some(Arc::clone(from)),
        _ => None,
    })
}

/// Relative paths resolve against the importing file, absolute ones stand for themselves, bare names are looked for
/// in `node_modules` upward.
fn find<'a>(path: &str, importer: &str, modules: &'a BTreeMap<String, String>) -> Option<(String, &'a str)> {
    let folder = importer.rsplit_once('/').map_or("", |(folder, _)| folder);
    if path.starts_with("./") || path.starts_with("../") {
        return candidates(&normal(&format!("{folder}/{path}")), modules);
    }
    if path.starts_with('/') {
        return candidates(&normal(path), modules);
    }
    let mut folder = folder;
    loop {
        if let Some(found) = candidates(&normal(&format!("{folder}/node_modules/{path}")), modules) {
            return Some(found);
        }
        folder = folder.rsplit_once('/')?.0;
    }
}

fn candidates<'a>(path: &str, modules: &'a BTreeMap<String, String>) -> Option<(String, &'a str)> {
    let tries = [path.to_string(), format!("{path}.prism"), format!("{path}/index.prism")];
    tries.into_iter().find_map(|path| modules.get(&path).map(|source| (path, source.as_str())))
}

/// The path without `.` and `..`.
fn normal(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    let root = if path.starts_with('/') { "/" } else { "" };
    format!("{root}{}", parts.join("/"))
}
