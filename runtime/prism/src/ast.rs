//! The syntax tree. Chains of one precedence level and chains of accesses are flat lists, so that the depth of a tree
//! is the nesting that its author wrote and no walk over it recurses further than the parser did.

use crate::diagnostic::Span;
use crate::lexer::Symbol;
use std::sync::Arc;

/// An occurrence of a variable's name. `id` numbers the occurrences of all files, for the resolver's table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ident {
    pub(crate) name: Symbol,
    pub(crate) id: u32,
    pub(crate) span: Span,
}

#[derive(Debug)]
pub(crate) struct Expr {
    pub(crate) kind: ExprKind,
    pub(crate) span: Span,
}

#[derive(Debug)]
pub(crate) enum ExprKind {
    Null,
    Bool(bool),
    Num(f64),
    Str(Arc<str>),
    Placeholder,
    Template(Vec<Part>),
    Ident(Ident),
    Array(Vec<Item>),
    Object(Vec<Pair>),
    Unary(UnOp, Box<Expr>),
    /// `first op e op e …`, one precedence level, evaluated from the left.
    Binary(Box<Expr>, Vec<(BinOp, Expr)>),
    /// `value ~> confidence`
    Attach(Box<Expr>, Box<Expr>),
    Ternary(Box<Ternary>),
    Pipe(Box<Expr>, Vec<(PipeOp, Expr)>),
    Access(Box<Expr>, Vec<Access>),
    Lambda(Box<Function>),
    Match(Box<Match>),
}

#[derive(Debug)]
pub(crate) enum Part {
    Text(Arc<str>),
    Expr(Expr),
}

/// An element of an array or an argument of a call.
#[derive(Debug)]
pub(crate) enum Item {
    Hole,
    Expr(Expr),
    Spread(Expr),
}

#[derive(Debug)]
pub(crate) enum Pair {
    Set(Arc<str>, Expr),
    Spread(Expr),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UnOp {
    Not,
    Neg,
    Tilde,
    Extract,
    Typeof,
    Await,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BinOp {
    Add,
    Sub,
    Mul,
    Div,
    Mod,
    Pow,
    Lt,
    Le,
    Gt,
    Ge,
    Eq,
    Ne,
    Same,
    NotSame,
    InstanceOf,
    And,
    Or,
    Coalesce,
    SureAdd,
    SureSub,
    SureMul,
    SureDiv,
    SureEq,
    SureNe,
    SureLt,
    SureLe,
    SureGe,
    SureAnd,
    SureOr,
    Chain,
    SureCoalesce,
    SureSelect,
    SureGate,
}

impl BinOp {
    /// Whether one side at least must have a confidence.
    pub(crate) const fn is_sure(self) -> bool {
        self as u8 >= BinOp::SureAdd as u8
    }

    pub(crate) const fn text(self) -> &'static str {
        use BinOp::*;
        match self {
            Add => "+",
            Sub => "-",
            Mul => "*",
            Div => "/",
            Mod => "%",
            Pow => "**",
            Lt => "<",
            Le => "<=",
            Gt => ">",
            Ge => ">=",
            Eq => "==",
            Ne => "!=",
            Same => "===",
            NotSame => "!==",
            InstanceOf => "instanceof",
            And => "&&",
            Or => "||",
            Coalesce => "??",
            SureAdd => "~+",
            SureSub => "~-",
            SureMul => "~*",
            SureDiv => "~/",
            SureEq => "~==",
            SureNe => "~!=",
            SureLt => "~<",
            SureLe => "~<=",
            SureGe => "~>=",
            SureAnd => "~&&",
            SureOr => "~||",
            Chain => "~~",
            SureCoalesce => "~??",
            SureSelect => "~||>",
            SureGate => "~@>",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PipeOp {
    Plain,
    Sure,
    Filter,
}

#[derive(Debug)]
pub(crate) struct Ternary {
    /// `~?`
    pub(crate) sure: bool,
    pub(crate) cond: Expr,
    pub(crate) then: Expr,
    pub(crate) other: Expr,
}

#[derive(Debug)]
pub(crate) struct Access {
    pub(crate) kind: AccessKind,
    /// Of this step alone: the name, the arguments, the index.
    pub(crate) span: Span,
}

#[derive(Debug)]
pub(crate) enum AccessKind {
    Call(Vec<Item>),
    Member(MemberOp, Arc<str>),
    Index(Expr),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MemberOp {
    Dot,
    /// `?.`
    Optional,
    /// `~.`
    Sure,
}

#[derive(Debug)]
pub(crate) struct Function {
    /// None for a lambda.
    pub(crate) name: Option<Ident>,
    pub(crate) is_async: bool,
    pub(crate) params: Vec<Target>,
    pub(crate) rest: Option<Target>,
    pub(crate) confidence: Option<Expr>,
    pub(crate) body: Body,
    pub(crate) span: Span,
}

#[derive(Debug)]
pub(crate) enum Body {
    Expr(Expr),
    Block(Block),
}

/// What a declaration, parameter or destructuring binds.
#[derive(Debug)]
pub(crate) enum Target {
    Name(Ident),
    Pattern(Pattern),
}

#[derive(Debug)]
pub(crate) struct Pattern {
    pub(crate) kind: PatternKind,
    pub(crate) span: Span,
}

#[derive(Debug)]
pub(crate) enum PatternKind {
    Array { elems: Vec<Option<Elem>>, rest: Option<Ident> },
    Object { props: Vec<Prop>, rest: Option<Ident> },
}

#[derive(Debug)]
pub(crate) struct Elem {
    pub(crate) target: Target,
    pub(crate) threshold: Option<Expr>,
}

#[derive(Debug)]
pub(crate) struct Prop {
    pub(crate) key: Arc<str>,
    pub(crate) target: Target,
    pub(crate) threshold: Option<Expr>,
    pub(crate) default: Option<Expr>,
}

#[derive(Debug)]
pub(crate) struct Match {
    pub(crate) subject: Expr,
    pub(crate) arms: Vec<Arm>,
}

#[derive(Debug)]
pub(crate) struct Arm {
    pub(crate) pattern: MatchPat,
    pub(crate) threshold: Option<Expr>,
    pub(crate) guard: Option<Expr>,
    pub(crate) body: Body,
}

#[derive(Debug)]
pub(crate) struct MatchPat {
    pub(crate) kind: MatchKind,
    pub(crate) span: Span,
}

#[derive(Debug)]
pub(crate) enum MatchKind {
    Any,
    Bind(Ident),
    /// A literal.
    Value(Literal),
    Array {
        elems: Vec<Option<MatchElem>>,
        rest: Option<Ident>,
    },
    Object {
        props: Vec<(Arc<str>, MatchElem)>,
        rest: Option<Ident>,
    },
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Literal {
    Null,
    Bool(bool),
    Num(f64),
    Str(Arc<str>),
}

#[derive(Debug)]
pub(crate) struct MatchElem {
    pub(crate) pattern: MatchPat,
    pub(crate) threshold: Option<Expr>,
}

#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) stmts: Vec<Stmt>,
    pub(crate) span: Span,
}

#[derive(Debug)]
pub(crate) struct Stmt {
    pub(crate) kind: StmtKind,
    pub(crate) span: Span,
}

#[derive(Debug)]
pub(crate) enum StmtKind {
    Expr(Expr),
    Let { target: Target, constant: bool, init: Option<Expr> },
    Assign { target: Ident, op: Option<BinOp>, value: Expr },
    Destructure { pattern: Pattern, threshold: Option<Expr>, value: Expr },
    Function(Box<Function>),
    Return(Option<Expr>),
    Break,
    Continue,
    If { arms: Vec<(Expr, Stmt)>, otherwise: Option<Box<Stmt>> },
    ForIn { item: Ident, index: Option<Ident>, over: Expr, body: Box<Stmt> },
    For { header: Box<Header>, body: Box<Stmt> },
    While { cond: Expr, body: Box<Stmt> },
    DoWhile { body: Box<Stmt>, cond: Expr },
    UncertainIf { cond: Expr, branches: Branches },
    UncertainWhile { cond: Expr, branches: Branches },
    UncertainFor { header: Box<Header>, branches: Branches },
    Block(Block),
    Context(Block),
    Agents(Vec<(Ident, Expr)>),
    Try(Box<Try>),
    Import(Import),
    Export(Export),
}

#[derive(Debug)]
pub(crate) struct Header {
    pub(crate) init: Option<Stmt>,
    pub(crate) cond: Option<Expr>,
    pub(crate) update: Option<Stmt>,
}

/// Branches of `uncertain`, in the order high, medium, low, default.
pub(crate) type Branches = [Option<Block>; 4];

#[derive(Debug)]
pub(crate) struct Try {
    pub(crate) body: Block,
    pub(crate) catch: Option<(Option<Ident>, Block)>,
    pub(crate) finally: Option<Block>,
}

#[derive(Debug)]
pub(crate) struct Import {
    pub(crate) from: Arc<str>,
    pub(crate) from_span: Span,
    pub(crate) all: Option<Ident>,
    /// The exported name and the variable it is bound to. `import d from` imports `default`.
    pub(crate) names: Vec<(Arc<str>, Ident)>,
}

#[derive(Debug)]
pub(crate) enum Export {
    Default(Expr),
    All {
        from: Arc<str>,
        from_span: Span,
    },
    /// Local variables under exported names.
    Names(Vec<(Ident, Arc<str>)>),
    /// Names of another module under exported names.
    From {
        from: Arc<str>,
        from_span: Span,
        names: Vec<(Arc<str>, Arc<str>, Span)>,
    },
    Stmt(Box<Stmt>),
}

/// One parsed file.
#[derive(Debug)]
pub(crate) struct Tree {
    pub(crate) stmts: Vec<Stmt>,
    /// Names in statements that could not be read.
    pub(crate) lost: Vec<Symbol>,
    pub(crate) span: Span,
}

impl StmtKind {
    /// The names that this statement declares in its own block with `let` or `const`.
    pub(crate) fn declared<'a>(&'a self, names: &mut Vec<&'a Ident>) {
        match self {
            StmtKind::Let { target, .. } => target.names(names),
            StmtKind::Export(Export::Stmt(inner)) => inner.kind.declared(names),
            // The body of `in context` is no scope of its own.
            StmtKind::Context(block) => block.stmts.iter().for_each(|s| s.kind.declared(names)),
            _ => {}
        }
    }
}

impl Target {
    pub(crate) fn names<'a>(&'a self, names: &mut Vec<&'a Ident>) {
        match self {
            Target::Name(ident) => names.push(ident),
            Target::Pattern(pattern) => pattern.names(names),
        }
    }
}

impl Pattern {
    pub(crate) fn names<'a>(&'a self, names: &mut Vec<&'a Ident>) {
        match &self.kind {
            PatternKind::Array { elems, rest } => {
                elems.iter().flatten().for_each(|e| e.target.names(names));
                names.extend(rest);
            }
            PatternKind::Object { props, rest } => {
                props.iter().for_each(|p| p.target.names(names));
                names.extend(rest);
            }
        }
    }
}
