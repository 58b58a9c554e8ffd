//! Code for destructuring and `match`.

use super::*;

impl Gen<'_> {
    /// A checked threshold in a temporary.
    pub(super) fn threshold(&mut self, e: &Expr) -> Made<Reg> {
        let reg = self.expr_temp(e)?;
        self.span = e.span;
        self.emit(Op::Threshold { reg });
        Ok(reg)
    }

    /// Binds the names of a pattern to the parts of `src`, declaring them or assigning them.
    pub(super) fn destructure(
        &mut self,
        p: &Pattern,
        src: Reg,
        global: Option<Reg>,
        declare: bool,
    ) -> Made<()> {
        self.span = p.span;
        match &p.kind {
            PatternKind::Array { elems, rest } => {
                self.emit(Op::Unpack { array: true, src });
                for (i, elem) in elems.iter().enumerate() {
                    let Some(elem) = elem else { continue };
                    let own = self.optional_threshold(elem.threshold.as_ref())?;
                    let dst = self.temp()?;
                    self.span = p.span;
                    self.emit(Op::Elem { dst, src, i: i.min(usize::from(u16::MAX)) as u16 });
                    if let Some(threshold) = own.or(global) {
                        self.emit(Op::Weak { empty: empty_of(&elem.target), reg: dst, threshold });
                    }
                    self.bind(&elem.target, dst, global, declare)?;
                }
                if let Some(rest) = rest {
                    let dst = self.temp()?;
                    self.span = rest.span;
                    self.emit(Op::RestArray { dst, src, from: elems.len() as u16 });
                    if let Some(threshold) = global {
                        self.emit(Op::Sift { reg: dst, threshold });
                    }
                    self.bind_name(rest, dst, declare)?;
                }
            }
            PatternKind::Object { props, rest } => {
                self.emit(Op::Unpack { array: false, src });
                for prop in props {
                    self.prop(prop, src, global, declare, p.span)?;
                }
                if let Some(rest) = rest {
                    let keys = props.iter().map(|p| Val::str(&*p.key)).collect();
                    let keys = self.const_of(Val::array(keys).expect("texts do not nest"));
                    let Ok(keys) = u16::try_from(keys) else { return self.too_large("constants") };
                    let dst = self.temp()?;
                    self.span = rest.span;
                    self.emit(Op::RestObject { dst, src, keys });
                    if let Some(threshold) = global {
                        self.emit(Op::Sift { reg: dst, threshold });
                    }
                    self.bind_name(rest, dst, declare)?;
                }
            }
        }
        Ok(())
    }

    fn optional_threshold(&mut self, e: Option<&Expr>) -> Made<Option<Reg>> {
        e.map(|e| self.threshold(e)).transpose()
    }

    fn prop(&mut self, prop: &Prop, src: Reg, global: Option<Reg>, declare: bool, span: Span) -> Made<()> {
        let own = self.optional_threshold(prop.threshold.as_ref())?;
        let dst = self.temp()?;
        let name = self.name16(&prop.key)?;
        self.span = span;
        self.emit(Op::Prop { dst, src, name });
        let present = self.jump();
        if let Some(default) = &prop.default {
            self.expr_into(default, dst, true)?;
        }
        self.patch(present);
        self.span = span;
        let nested = matches!(prop.target, Target::Pattern(_));
        if let Some(threshold) = own.or(global) {
            self.emit(Op::Weak { empty: empty_of(&prop.target), reg: dst, threshold });
        }
        // On a nested pattern the property's threshold becomes the one of its parts.
        self.bind(&prop.target, dst, own.filter(|_| nested).or(global), declare)
    }

    fn bind(&mut self, target: &Target, src: Reg, global: Option<Reg>, declare: bool) -> Made<()> {
        match target {
            Target::Name(ident) => self.bind_name(ident, src, declare),
            Target::Pattern(pattern) => self.destructure(pattern, src, global, declare),
        }
    }

    fn bind_name(&mut self, ident: &Ident, src: Reg, declare: bool) -> Made<()> {
        self.span = ident.span;
        if declare { self.init(ident, src) } else { self.write(ident, src) }
    }

    pub(super) fn match_into(&mut self, m: &Match, dst: Reg) -> Made<()> {
        let mark = self.mark();
        let subject = self.expr_temp(&m.subject)?;
        self.span = m.subject.span;
        self.emit(Op::Force { reg: subject });
        let mut ends = Vec::new();
        for arm in &m.arms {
            let mark = self.mark();
            let mut misses = Vec::new();
            let threshold = self.optional_threshold(arm.threshold.as_ref());
            let threshold = threshold?;
            self.match_pattern(&arm.pattern, subject, threshold, &mut misses)?;
            if let Some(guard) = &arm.guard {
                let mark = self.mark();
                misses.extend(self.cond_jump(guard, false)?);
                self.release(mark);
            }
            match &arm.body {
                Body::Expr(e) => self.expr_into(e, dst, true)?,
                Body::Block(block) => self.block(block, Some(dst))?,
            }
            ends.push(self.jump());
            self.patch_all(misses);
            self.release(mark);
        }
        self.emit(Op::Null { dst });
        self.patch_all(ends);
        self.release(mark);
        Ok(())
    }

    /// A test, and the jump that is taken when it fails.
    fn test(&mut self, op: Op, misses: &mut Vec<usize>) {
        self.emit(op);
        misses.push(self.jump());
    }

    fn match_pattern(
        &mut self,
        p: &MatchPat,
        src: Reg,
        threshold: Option<Reg>,
        misses: &mut Vec<usize>,
    ) -> Made<()> {
        self.span = p.span;
        if let Some(threshold) = threshold {
            self.test(Op::Confident { src, threshold }, misses);
        }
        match &p.kind {
            MatchKind::Any => {}
            MatchKind::Bind(ident) => {
                let copy = self.temp()?;
                self.emit(Op::Move { dst: copy, src });
                self.bind_match(ident, copy)?;
            }
            MatchKind::Value(literal) => {
                let k = match literal {
                    Literal::Null => self.const_of(Val::Null),
                    Literal::Bool(b) => self.const_of(Val::Bool(*b)),
                    Literal::Num(x) => self.num_const(*x),
                    Literal::Str(s) => self.text_const(s),
                };
                let Ok(k) = u16::try_from(k) else { return self.too_large("constants") };
                self.test(Op::IsValue { src, k }, misses);
            }
            MatchKind::Array { elems, rest } => {
                let inner = self.temp()?;
                self.emit(Op::Peel { dst: inner, src });
                let len = elems.len().min(usize::from(u16::MAX)) as u16;
                self.test(Op::IsArray { more: rest.is_some(), src: inner, len }, misses);
                for (i, elem) in elems.iter().enumerate() {
                    let Some(elem) = elem else { continue };
                    let dst = self.temp()?;
                    self.emit(Op::Elem { dst, src: inner, i: i as u16 });
                    self.match_elem(elem, dst, threshold, misses)?;
                }
                if let Some(rest) = rest {
                    let dst = self.temp()?;
                    self.emit(Op::RestArray { dst, src: inner, from: len });
                    self.bind_match(rest, dst)?;
                }
            }
            MatchKind::Object { props, rest } => {
                let inner = self.temp()?;
                self.emit(Op::Peel { dst: inner, src });
                self.test(Op::IsObject { src: inner }, misses);
                for (key, elem) in props {
                    let name = self.name16(key)?;
                    let dst = self.temp()?;
                    self.test(Op::HasKey { src: inner, name }, misses);
                    self.emit(Op::GetOptional { dst, obj: inner, name });
                    self.match_elem(elem, dst, threshold, misses)?;
                }
                if let Some(rest) = rest {
                    let keys = props.iter().map(|(key, _)| Val::str(&**key)).collect();
                    let keys = self.const_of(Val::array(keys).expect("texts do not nest"));
                    let Ok(keys) = u16::try_from(keys) else { return self.too_large("constants") };
                    let dst = self.temp()?;
                    self.emit(Op::RestObject { dst, src: inner, keys });
                    self.bind_match(rest, dst)?;
                }
            }
        }
        Ok(())
    }

    fn match_elem(
        &mut self,
        elem: &MatchElem,
        src: Reg,
        global: Option<Reg>,
        misses: &mut Vec<usize>,
    ) -> Made<()> {
        self.emit(Op::Force { reg: src });
        let own = self.optional_threshold(elem.threshold.as_ref())?;
        self.match_pattern(&elem.pattern, src, own.or(global), misses)
    }

    fn bind_match(&mut self, ident: &Ident, src: Reg) -> Made<()> {
        if let Use::Var { var, .. } = self.use_of(ident)
            && !self.in_cell(var)
            && self.locs[var as usize] == Loc::Nowhere
        {
            self.locs[var as usize] = Loc::Reg(src);
            return Ok(());
        }
        self.init(ident, src)
    }
}

fn empty_of(target: &Target) -> Empty {
    match target {
        Target::Name(_) => Empty::Null,
        Target::Pattern(Pattern { kind: PatternKind::Array { .. }, .. }) => Empty::Array,
        Target::Pattern(Pattern { kind: PatternKind::Object { .. }, .. }) => Empty::Object,
    }
}
