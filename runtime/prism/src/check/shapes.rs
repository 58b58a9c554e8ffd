//! Members of values whose kind is certain: `[1].slicee(x)`, `agents[0].analize(task)`, `"a".lenght`.

use super::Checker;
use crate::Profile;
use crate::ast::*;
use crate::builtins::agents::{MEMBERS, RESULT_MEMBERS};
use crate::builtins::{Native, Owner};
use crate::compile::VarId;
use crate::diagnostic::closest;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    Array,
    Text,
    Number,
    Boolean,
    /// `agents`.
    Agents,
    /// One of them.
    Agent,
    /// `agentResults` and `successfulResults`.
    Results,
    /// One of them.
    Result,
}

impl Shape {
    /// Of what an array of this is made, where that is certain.
    pub(super) fn each(self) -> Option<Shape> {
        match self {
            Shape::Agents => Some(Shape::Agent),
            Shape::Results => Some(Shape::Result),
            _ => None,
        }
    }
}

/// Variables that are looked through, one after the other.
const MAX_STEPS: u32 = 8;

impl<'a> Checker<'a> {
    /// What an expression certainly gives, its confidence aside.
    pub(super) fn shape(&self, e: &'a Expr) -> Option<Shape> {
        self.shape_within(e, MAX_STEPS)
    }

    fn shape_within(&self, e: &'a Expr, left: u32) -> Option<Shape> {
        let left = left.checked_sub(1)?;
        match &e.kind {
            ExprKind::Array(_) => Some(Shape::Array),
            ExprKind::Str(_) | ExprKind::Template(_) => Some(Shape::Text),
            ExprKind::Num(_) | ExprKind::Unary(UnOp::Extract, _) => Some(Shape::Number),
            ExprKind::Bool(_) | ExprKind::Unary(UnOp::Not, _) => Some(Shape::Boolean),
            ExprKind::Attach(value, _) => self.shape_within(value, left),
            ExprKind::Ident(ident) => {
                let var = self.var(ident)?;
                match self.plain.get(&var) {
                    Some(init) => self.shape_within(init, left),
                    None => self.host_list(ident).or_else(|| self.shapes.get(&var).copied()),
                }
            }
            ExprKind::Access(head, steps) => {
                let head = self.shape_within(head, left);
                (0..steps.len()).try_fold(head?, |shape, at| after(shape, steps, at))
            }
            _ => None,
        }
    }

    /// The host's lists.
    pub(super) fn host_list(&self, ident: &Ident) -> Option<Shape> {
        let name = self.names.text(ident.name);
        if !self.is_free(ident) || self.checks.known.iter().any(|known| **known == **name) {
            return None;
        }
        match &**name {
            "agents" | "agentList" => Some(Shape::Agents),
            "agentResults" | "successfulResults" => Some(Shape::Results),
            _ => None,
        }
    }

    /// Looks at each member that is taken from something of a certain kind.
    pub(super) fn members(&mut self, head: &'a Expr, steps: &'a [Access]) {
        let mut shape = self.shape(head);
        for (at, step) in steps.iter().enumerate() {
            let Some(of) = shape else { return };
            if let AccessKind::Member(op, name) = &step.kind {
                self.member(of, *op, name, step, steps.get(at + 1));
            }
            if let AccessKind::Call(args) = &step.kind
                && let Some(Access { kind: AccessKind::Member(_, name), .. }) =
                    at.checked_sub(1).map(|i| &steps[i])
            {
                self.each(of, name, args);
            }
            shape = after(of, steps, at);
        }
    }

    /// The parameter of a callback over agents is an agent, as over results.
    fn each(&mut self, of: Shape, method: &str, args: &'a [Item]) {
        let walks = matches!(method, "map" | "filter" | "find" | "some" | "every" | "forEach");
        if let (Some(each), true, Some(Item::Expr(Expr { kind: ExprKind::Lambda(f), .. }))) =
            (of.each(), walks, args.first())
            && let Some(Target::Name(ident)) = f.params.first()
            && let Some(var) = self.var(ident).filter(|var: &VarId| self.settled(*var))
        {
            self.shapes.insert(var, each);
        }
    }

    fn member(&mut self, of: Shape, op: MemberOp, name: &str, step: &Access, next: Option<&Access>) {
        let profile = self.options.profile;
        let (what, known): (&str, Vec<&str>) = match of {
            Shape::Array | Shape::Agents | Shape::Results => ("arrays have", methods(Owner::Array, profile)),
            Shape::Text => ("strings have", methods(Owner::String, profile)),
            Shape::Agent => ("an agent has", MEMBERS.to_vec()),
            Shape::Result => ("a result has", RESULT_MEMBERS.to_vec()),
            // `?.` gives null.
            Shape::Number | Shape::Boolean if op != MemberOp::Optional => {
                let kind = if of == Shape::Number { "a number" } else { "a boolean" };
                let message = format!("cannot read `{name}` of {kind}");
                let error = self.error("property_on_invalid", message, step.span);
                return self.tell(error);
            }
            Shape::Number | Shape::Boolean => return,
        };
        if known.contains(&name) {
            return;
        }
        let hint = closest(name, known).map(|near| format!("did you mean `{near}`?"));
        let called = next.is_some_and(|next| matches!(next.kind, AccessKind::Call(_)));
        let mut error = self.error("missing_property", format!("{what} no `{name}`"), step.span).hint(hint);
        // What would not be there gives null: a slip, but no error unless it is called.
        let null =
            op != MemberOp::Dot || matches!(of, Shape::Agent | Shape::Result) && profile == Profile::Pattern;
        if null && !called {
            if error.hint.is_none() {
                return;
            }
            error = error.warning();
        }
        self.tell(error);
    }
}

fn methods(owner: Owner, profile: Profile) -> Vec<&'static str> {
    Native::methods(owner, profile).chain(["length"]).collect()
}

/// What a step makes of it.
fn after(shape: Shape, steps: &[Access], at: usize) -> Option<Shape> {
    match &steps[at].kind {
        AccessKind::Index(_) => shape.each(),
        // A method, until it is called.
        AccessKind::Member(MemberOp::Dot, name) => match steps.get(at + 1).map(|step| &step.kind) {
            Some(AccessKind::Call(_)) => Some(shape),
            _ => match (shape, &**name) {
                (Shape::Array | Shape::Agents | Shape::Results | Shape::Text, "length") => {
                    Some(Shape::Number)
                }
                (Shape::Agent, "id" | "name") => Some(Shape::Text),
                (Shape::Agent, "capabilities") => Some(Shape::Array),
                (Shape::Agent, "expertise") => Some(Shape::Number),
                _ => None,
            },
        },
        AccessKind::Member(..) => None,
        AccessKind::Call(_) => {
            let Some(AccessKind::Member(MemberOp::Dot, method)) = at.checked_sub(1).map(|i| &steps[i].kind)
            else {
                return None;
            };
            match (shape, &**method) {
                (Shape::Agents | Shape::Results, "filter" | "slice" | "sort") => Some(shape),
                (Shape::Agents | Shape::Results, "map" | "push" | "concat") => Some(Shape::Array),
                (Shape::Array, "map" | "filter" | "slice" | "sort" | "push" | "concat") => Some(Shape::Array),
                (Shape::Array, "join") | (Shape::Text, "trim" | "toLowerCase" | "toUpperCase") => {
                    Some(Shape::Text)
                }
                (Shape::Text, "split") => Some(Shape::Array),
                (Shape::Array | Shape::Agents | Shape::Results, "includes" | "some" | "every")
                | (Shape::Text, "includes") => Some(Shape::Boolean),
                (Shape::Array, "indexOf") => Some(Shape::Number),
                _ => None,
            }
        }
    }
}
