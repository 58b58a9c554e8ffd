use super::*;

fn toks(source: &str) -> Vec<Tok> {
    let (tokens, errors) = lex(source, 0, &mut Names::default());
    assert!(errors.is_empty(), "{}", errors[0].message);
    tokens.into_iter().map(|t| t.tok).filter(|t| *t != Tok::Eof).collect()
}

#[test]
fn longest_sign_wins() {
    use Sign::*;
    let signs = |source| toks(source).into_iter().filter(|t| matches!(t, Tok::Sign(_))).collect::<Vec<_>>();
    assert_eq!(signs("a ~||> b ~|| c ~|> d"), [SureOrSelect, SureOr, SurePipe].map(Tok::Sign));
    assert_eq!(signs("a<~b x->y a~>=b a~> =b"), [Extract, ThinArrow, SureGe, Attach, Set].map(Tok::Sign));
    assert_eq!(signs("a?.b ? c ?? d ~??e"), [OptDot, Question, Coalesce, SureCoalesce].map(Tok::Sign));
}

#[test]
fn signs_are_sorted_by_length() {
    assert!(SIGNS.windows(2).all(|w| w[0].0.len() >= w[1].0.len()));
}

#[test]
fn numbers_end_where_the_grammar_says() {
    assert_eq!(toks("1.5")[0], Tok::Num(1.5));
    assert_eq!(toks("1e6").len(), 2);
    assert_eq!(toks("1.x")[1], Tok::Sign(Sign::Dot));
}

#[test]
fn interpolation_nests() {
    let tokens = toks(r#""a${ {b: "${c}"} }d""#);
    assert_eq!(tokens.iter().filter(|t| **t == Tok::ExprStart).count(), 2);
    assert_eq!(tokens.first(), Some(&Tok::TextStart));
    assert_eq!(tokens.last(), Some(&Tok::TextEnd));
}

#[test]
fn escapes() {
    assert_eq!(toks(r#""\t\"\q\${x}\\""#), [Tok::Str(Arc::from("\t\"q${x}\\"))]);
    assert_eq!(toks("```a\\n\n`` b```"), [Tok::Str(Arc::from("a\\n\n`` b"))]);
}

#[test]
fn errors_do_not_stop_the_lexer() {
    let (_, errors) = lex("let a = 'x' # & \"open", 0, &mut Names::default());
    assert_eq!(errors.len(), 4);
}
