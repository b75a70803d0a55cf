//! Expressions: what stands between `[` and `]` in a string of a template, as a tree.
//!
//! Function names are resolved and their arguments counted here, so that a template with a mistake in an expression that
//! would never run is still refused.
//!
//! **Invariant:** a tree is at most [`EXPR_DEPTH_MAX`] deep, whatever the text.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::functions::{self, Availability, Function};

/// Deepest nesting of calls.
pub(crate) const EXPR_DEPTH_MAX: usize = 100;
/// Longest expression in characters, ARM's limit.
pub const EXPRESSION_LEN_MAX: usize = 24_576;

/// An expression.
#[derive(Clone, Debug)]
pub(crate) enum Expr {
    /// `'text'` or `12`.
    Literal(Value),
    /// `name(args)`.
    Call { callee: Callee, args: Vec<Expr> },
    /// `base.a['b'][0]`.
    Access { base: Box<Expr>, keys: Vec<Expr> },
}

/// What a call calls.
#[derive(Clone, Debug)]
pub(crate) enum Callee {
    /// A function of the language.
    Builtin(&'static Function),
    /// `list…`: the name as written.
    List(String),
    /// A function of the template, `namespace.name` in lower case.
    User(String),
}

/// Where an expression stands: decides which functions it may call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// `defaultValue` of a parameter.
    ParameterDefault,
    /// A variable.
    Variable,
    /// Name, condition, loop count, scope, `dependsOn`: known before anything runs.
    Head,
    /// The rest of a resource, and outputs: evaluated when what it refers to is there.
    Body,
    /// `output` of a user function.
    UserFunction,
}

/// What the names in expressions refer to: lower-case names.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Known<'k> {
    pub(crate) parameters: &'k dyn NameSet,
    pub(crate) variables: &'k dyn NameSet,
    /// Full name to the least and largest count of arguments.
    pub(crate) functions: &'k BTreeMap<String, usize>,
}

/// A set of lower-case names.
pub(crate) trait NameSet: std::fmt::Debug {
    fn has(&self, name: &str) -> bool;
}

impl NameSet for std::collections::BTreeSet<String> {
    fn has(&self, name: &str) -> bool {
        self.contains(name)
    }
}

/// If a string is an expression, its text without the brackets.
pub(crate) fn expression_of(text: &str) -> Option<&str> {
    let inner = text.strip_prefix('[')?.strip_suffix(']')?;
    (!inner.starts_with('[')).then_some(inner)
}

/// A string that is no expression, with the escape `[[` undone.
pub(crate) fn unescape(text: &str) -> &str {
    if text.starts_with("[[") { &text[1..] } else { text }
}

/// Parses an expression and checks its calls.
pub(crate) fn parse(text: &str, place: Place, known: &Known<'_>) -> Result<Expr, String> {
    if text.chars().count() > EXPRESSION_LEN_MAX {
        return Err(format!("the expression has more than {EXPRESSION_LEN_MAX} characters; split it with variables"));
    }
    let mut parser = Parser { text, at: 0, depth: 0, place, known };
    let expr = parser.expr()?;
    parser.space();
    if parser.at < text.len() {
        return Err(parser.error(format!("unexpected {}", parser.found())));
    }
    Ok(expr)
}

impl Expr {
    /// Calls `visit` for each call in the tree.
    pub(crate) fn visit_calls<'e>(&'e self, visit: &mut dyn FnMut(&'e Callee, &'e [Expr])) {
        match self {
            Self::Literal(_) => {}
            Self::Call { callee, args } => {
                visit(callee, args);
                args.iter().for_each(|arg| arg.visit_calls(visit));
            }
            Self::Access { base, keys } => {
                base.visit_calls(visit);
                keys.iter().for_each(|key| key.visit_calls(visit));
            }
        }
    }

    /// The literal text that this is.
    pub(crate) fn as_text(&self) -> Option<&str> {
        match self {
            Self::Literal(Value::String(text)) => Some(text),
            _ => None,
        }
    }
}

struct Parser<'t> {
    text: &'t str,
    at: usize,
    depth: usize,
    place: Place,
    known: &'t Known<'t>,
}

type Parsed<T> = Result<T, String>;

impl<'t> Parser<'t> {
    fn error(&self, what: impl std::fmt::Display) -> String {
        let shown: String = self.text.chars().take(120).collect();
        let rest = if shown.len() < self.text.len() { "…" } else { "" };
        let position = self.text[..self.at].chars().count() + 1;
        format!("unable to parse language expression '{shown}{rest}' at position {position}: {what}")
    }

    fn found(&self) -> String {
        self.peek().map_or_else(|| "end of the expression".into(), |c| format!("`{}`", c.escape_debug()))
    }

    fn peek(&self) -> Option<char> {
        self.text[self.at..].chars().next()
    }

    fn space(&mut self) {
        self.at = self.text.len() - self.text[self.at..].trim_start().len();
    }

    /// Consumes `c`, after white space.
    fn eat(&mut self, c: char) -> bool {
        self.space();
        let eaten = self.peek() == Some(c);
        self.at += if eaten { c.len_utf8() } else { 0 };
        eaten
    }

    fn expect(&mut self, c: char) -> Parsed<()> {
        if self.eat(c) {
            return Ok(());
        }
        Err(self.error(format!("`{c}` is expected, found {}", self.found())))
    }

    fn expr(&mut self) -> Parsed<Expr> {
        if self.depth == EXPR_DEPTH_MAX {
            return Err(self.error(format!("calls are nested deeper than {EXPR_DEPTH_MAX} levels")));
        }
        self.depth += 1;
        let base = self.primary()?;
        let mut keys = Vec::new();
        loop {
            if self.eat('.') {
                self.space();
                let name = self.word();
                if name.is_empty() {
                    return Err(self.error(format!("a property name is expected after `.`, found {}", self.found())));
                }
                keys.push(Expr::Literal(name.into()));
            } else if self.eat('[') {
                keys.push(self.expr()?);
                self.expect(']')?;
            } else {
                break;
            }
        }
        self.depth -= 1;
        Ok(if keys.is_empty() { base } else { Expr::Access { base: Box::new(base), keys } })
    }

    fn word(&mut self) -> &'t str {
        let rest = &self.text[self.at..];
        let len = rest.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == '$')).unwrap_or(rest.len());
        self.at += len;
        &rest[..len]
    }

    fn primary(&mut self) -> Parsed<Expr> {
        self.space();
        match self.peek() {
            Some('\'') => self.string(),
            Some(c) if c.is_ascii_digit() || c == '-' || c == '+' => self.integer(),
            Some(c) if c.is_alphabetic() || c == '_' => self.call(),
            _ => Err(self.error(format!("a function, string or integer is expected, found {}", self.found()))),
        }
    }

    fn string(&mut self) -> Parsed<Expr> {
        let mut string = String::new();
        let open = self.at;
        loop {
            self.at += 1;
            let rest = &self.text[self.at..];
            let Some(end) = rest.find('\'') else {
                self.at = open;
                return Err(self.error("a string without its closing quote"));
            };
            string.push_str(&rest[..end]);
            self.at += end + 1;
            if self.peek() != Some('\'') {
                return Ok(Expr::Literal(string.into()));
            }
            string.push('\'');
        }
    }

    fn integer(&mut self) -> Parsed<Expr> {
        let rest = &self.text[self.at..];
        let len = 1 + rest[1..].find(|c: char| !(c.is_alphanumeric() || c == '.')).unwrap_or(rest.len() - 1);
        let number: i64 =
            rest[..len].parse().map_err(|_| self.error(format!("`{}` is not a 64-bit integer", &rest[..len])))?;
        self.at += len;
        Ok(Expr::Literal(number.into()))
    }

    fn call(&mut self) -> Parsed<Expr> {
        let start = self.at;
        let first = self.word();
        let mut name = first.to_owned();
        if self.peek() == Some('.') {
            self.at += 1;
            name = format!("{first}.{}", self.word());
        }
        if !self.eat('(') {
            self.at = start;
            return Err(
                self.error(format!("`{name}` is no function call; write `{name}(…)`, or quotes around a string"))
            );
        }
        let mut args = Vec::new();
        if !self.eat(')') {
            loop {
                args.push(self.expr()?);
                if self.eat(')') {
                    break;
                }
                if !self.eat(',') {
                    return Err(self.error(format!("`,` or `)` is expected, found {}", self.found())));
                }
            }
        }
        let callee = self.resolve(&name, &args)?;
        Ok(Expr::Call { callee, args })
    }

    fn resolve(&self, name: &str, args: &[Expr]) -> Parsed<Callee> {
        let lower = name.to_lowercase();
        if name.contains('.') {
            let count = self.known.functions.get(&lower).copied();
            return match count {
                None => Err(format!("the template function '{name}' is not valid: the template does not define it")),
                Some(count) if count != args.len() => {
                    Err(format!("the template function '{name}' takes {count} arguments, {} are given", args.len()))
                }
                Some(_) => Ok(Callee::User(lower)),
            };
        }
        let Some(function) = functions::find(&lower) else {
            let near = functions::nearest(&lower).map(|near| format!("; did you mean '{near}'?")).unwrap_or_default();
            return Err(format!("the template function '{name}' is not valid{near}"));
        };
        self.check_place(function, name)?;
        let (least, most) = function.arity();
        if args.len() < least || args.len() > most {
            let signature = function.signature;
            return Err(format!(
                "unable to evaluate template language function '{name}': {} arguments are given; write {signature}",
                args.len()
            ));
        }
        self.check_name(function, args)?;
        Ok(if function.name == functions::LIST { Callee::List(name.to_owned()) } else { Callee::Builtin(function) })
    }

    fn check_place(&self, function: &Function, name: &str) -> Parsed<()> {
        let instead = match (function.availability, self.place) {
            (Availability::ParameterDefaults, Place::ParameterDefault) | (Availability::Everywhere, _) => return Ok(()),
            (Availability::ParameterDefaults, _) => "it can stand in a parameter's `defaultValue` only",
            (Availability::Runtime, Place::Body) => return Ok(()),
            (Availability::Runtime, _) => "it can stand in the properties of a resource and in outputs only",
            (Availability::NotInDefaults, Place::ParameterDefault) => "it cannot stand in a parameter's `defaultValue`",
            (Availability::NotInDefaults, Place::UserFunction) => "a user function knows its own parameters only",
            (Availability::NotInDefaults, _) => return Ok(()),
        };
        Err(format!("the template function '{name}' is not expected at this location: {instead}"))
    }

    /// `parameters('x')` and `variables('x')` with a literal name that nothing defines.
    fn check_name(&self, function: &Function, args: &[Expr]) -> Parsed<()> {
        let Some(name) = args.first().and_then(Expr::as_text) else { return Ok(()) };
        let (names, what) = match function.name {
            "parameters" => (self.known.parameters, "parameter"),
            "variables" => (self.known.variables, "variable"),
            _ => return Ok(()),
        };
        if names.has(&name.to_lowercase()) {
            return Ok(());
        }
        Err(format!("the template {what} '{name}' is not found; define it under `{what}s`"))
    }
}
