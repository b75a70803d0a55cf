//! ARM's filter language for lists of resources: `resourceType eq 'x' and (name eq 'a' or startswith(name, 'b'))`.
//!
//! **Invariant:** a filter that is not understood is refused; nothing is listed by a guess.

use cove_arm::{ArmError, provider};
use cove_store::ResourceRow;
use serde_json::Value;

/// Longest filter, in characters.
const LENGTH_MAX: usize = 4096;
/// Deepest brackets.
const DEPTH_MAX: usize = 16;

/// What a list is restricted to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) enum Filter {
    /// All.
    #[default]
    All,
    /// Every one of these.
    And(Vec<Filter>),
    /// At least one of these.
    Or(Vec<Filter>),
    /// A comparison.
    Is(Field, Verb, String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Field {
    Kind,
    Name,
    Group,
    Location,
    TagName,
    TagValue,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Equal,
    Unequal,
    Contains,
    StartsWith,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    Text(String),
    Open,
    Close,
    Comma,
}

impl Filter {
    /// Reads a filter.
    ///
    /// # Errors
    /// 400 `InvalidFilterInQueryString`.
    pub(super) fn parse(text: &str) -> Result<Self, ArmError> {
        if text.trim().is_empty() {
            return Ok(Self::All);
        }
        let parsed = tokens(text).and_then(|tokens| {
            let mut reader = Reader { tokens, at: 0, depth: 0 };
            let filter = reader.any()?;
            (reader.at == reader.tokens.len()).then_some(filter)
        });
        parsed.ok_or_else(|| {
            let shown: String = text.chars().take(200).collect();
            let message = format!(
                "The filter '{shown}' is not supported; expected comparisons such as resourceType eq 'text', name ne 'text', \
                 substringof('text', name), startswith(name, 'text'), joined by 'and' and 'or'; fields are resourceType, name, \
                 resourceGroup, location, tagName and tagValue."
            );
            ArmError::new(400, "InvalidFilterInQueryString", message)
        })
    }

    /// Whether a resource passes; one tag must pass all that is asked of tags.
    pub(super) fn takes(&self, row: &ResourceRow) -> bool {
        let tags = row.doc.get("tags").and_then(Value::as_object);
        let mut tags = tags.into_iter().flatten().map(|(name, value)| (name.as_str(), value.as_str().unwrap_or("")));
        self.holds(row, ("", "")) || tags.any(|tag| self.holds(row, tag))
    }

    fn holds(&self, row: &ResourceRow, tag: (&str, &str)) -> bool {
        match self {
            Self::All => true,
            Self::And(parts) => parts.iter().all(|part| part.holds(row, tag)),
            Self::Or(parts) => parts.iter().any(|part| part.holds(row, tag)),
            Self::Is(field, verb, wanted) => {
                let (found, wanted) = match field {
                    Field::Kind => (row.kind.to_ascii_lowercase(), wanted.to_ascii_lowercase()),
                    Field::Name => (row.id.name().to_ascii_lowercase(), wanted.to_ascii_lowercase()),
                    Field::Group => (row.id.group_name().to_ascii_lowercase(), wanted.to_ascii_lowercase()),
                    Field::Location => {
                        let location = row.doc.get("location").and_then(Value::as_str).unwrap_or("local");
                        (provider::location_key(location), provider::location_key(wanted))
                    }
                    Field::TagName => (tag.0.to_ascii_lowercase(), wanted.to_ascii_lowercase()),
                    Field::TagValue => (tag.1.to_owned(), wanted.clone()),
                };
                match verb {
                    Verb::Equal => found == wanted,
                    Verb::Unequal => found != wanted,
                    Verb::Contains => found.contains(&wanted),
                    Verb::StartsWith => found.starts_with(&wanted),
                }
            }
        }
    }
}

fn tokens(text: &str) -> Option<Vec<Token>> {
    if text.chars().count() > LENGTH_MAX {
        return None;
    }
    let mut tokens = Vec::new();
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            c if c.is_whitespace() => {}
            '(' => tokens.push(Token::Open),
            ')' => tokens.push(Token::Close),
            ',' => tokens.push(Token::Comma),
            '\'' => {
                let mut value = String::new();
                loop {
                    match rest.next()? {
                        // a doubled quote is one
                        '\'' if rest.peek() == Some(&'\'') => value.extend(rest.next()),
                        '\'' => break,
                        c => value.push(c),
                    }
                }
                tokens.push(Token::Text(value));
            }
            c => {
                let mut word = String::from(c);
                while let Some(c) = rest.next_if(|c| !c.is_whitespace() && !matches!(c, '(' | ')' | ',' | '\'')) {
                    word.push(c);
                }
                tokens.push(Token::Word(word));
            }
        }
    }
    Some(tokens)
}

struct Reader {
    tokens: Vec<Token>,
    at: usize,
    depth: usize,
}

impl Reader {
    fn next(&mut self) -> Option<Token> {
        let token = self.tokens.get(self.at).cloned();
        self.at += 1;
        token
    }

    fn takes_word(&mut self, word: &str) -> bool {
        let is_it = matches!(self.tokens.get(self.at), Some(Token::Word(found)) if found.eq_ignore_ascii_case(word));
        self.at += usize::from(is_it);
        is_it
    }

    fn expect(&mut self, token: &Token) -> Option<()> {
        (self.next()? == *token).then_some(())
    }

    fn any(&mut self) -> Option<Filter> {
        let mut parts = vec![self.all()?];
        while self.takes_word("or") {
            parts.push(self.all()?);
        }
        Some(if parts.len() == 1 { parts.remove(0) } else { Filter::Or(parts) })
    }

    fn all(&mut self) -> Option<Filter> {
        let mut parts = vec![self.one()?];
        while self.takes_word("and") {
            parts.push(self.one()?);
        }
        Some(if parts.len() == 1 { parts.remove(0) } else { Filter::And(parts) })
    }

    fn one(&mut self) -> Option<Filter> {
        match self.next()? {
            Token::Open => {
                self.depth += 1;
                if self.depth > DEPTH_MAX {
                    return None;
                }
                let inner = self.any()?;
                self.expect(&Token::Close)?;
                self.depth -= 1;
                Some(inner)
            }
            Token::Word(word) if word.eq_ignore_ascii_case("substringof") => {
                self.expect(&Token::Open)?;
                let text = self.text()?;
                self.expect(&Token::Comma)?;
                let field = self.field()?;
                self.expect(&Token::Close)?;
                Some(Filter::Is(field, Verb::Contains, text))
            }
            Token::Word(word) if word.eq_ignore_ascii_case("startswith") => {
                self.expect(&Token::Open)?;
                let field = self.field()?;
                self.expect(&Token::Comma)?;
                let text = self.text()?;
                self.expect(&Token::Close)?;
                Some(Filter::Is(field, Verb::StartsWith, text))
            }
            Token::Word(word) => {
                let field = field(&word)?;
                let verb = match self.next()? {
                    Token::Word(verb) if verb.eq_ignore_ascii_case("eq") => Verb::Equal,
                    Token::Word(verb) if verb.eq_ignore_ascii_case("ne") => Verb::Unequal,
                    _ => return None,
                };
                Some(Filter::Is(field, verb, self.text()?))
            }
            Token::Text(_) | Token::Close | Token::Comma => None,
        }
    }

    fn text(&mut self) -> Option<String> {
        match self.next()? {
            Token::Text(text) => Some(text),
            Token::Word(_) | Token::Open | Token::Close | Token::Comma => None,
        }
    }

    fn field(&mut self) -> Option<Field> {
        match self.next()? {
            Token::Word(word) => field(&word),
            Token::Text(_) | Token::Open | Token::Close | Token::Comma => None,
        }
    }
}

fn field(word: &str) -> Option<Field> {
    Some(match word.to_ascii_lowercase().as_str() {
        "resourcetype" => Field::Kind,
        "name" => Field::Name,
        "resourcegroup" => Field::Group,
        "location" => Field::Location,
        "tagname" => Field::TagName,
        "tagvalue" => Field::TagValue,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use cove_store::Provisioning;
    use serde_json::json;

    use super::*;

    #[test]
    fn filters_take_what_they_say() {
        let id = cove_model::ResourceId::resource("s", "G", "Microsoft.App/containerApps", "Web").unwrap();
        let row = ResourceRow {
            kind: "microsoft.app/containerapps".into(),
            doc: json!({ "location": "East US", "tags": { "team": "red", "env": "dev" } }),
            spec: None,
            generation: 1,
            etag: String::new(),
            provisioning: Provisioning::Succeeded,
            failure: None,
            created_at: jiff::Timestamp::UNIX_EPOCH,
            updated_at: jiff::Timestamp::UNIX_EPOCH,
            id,
        };
        for (text, expected) in [
            ("", true),
            ("resourceType eq 'Microsoft.App/containerApps' and name eq 'web'", true),
            ("resourceType eq 'Microsoft.App/jobs' or (name ne 'x' and location eq 'eastus')", true),
            ("tagName eq 'team' and tagValue eq 'red'", true),
            ("tagName eq 'team' and tagValue eq 'dev'", false),
            ("substringof('eb', name) and startswith(name, 'w')", true),
            ("resourceGroup eq 'other'", false),
        ] {
            assert_eq!(Filter::parse(text).unwrap().takes(&row), expected, "{text}");
        }
        for bad in ["name eq x", "size eq 'x'", "name eq 'x", "name eq 'a' and", "((((name", "name gt 'x'", "'x'"] {
            assert_eq!(Filter::parse(bad).unwrap_err().code, "InvalidFilterInQueryString", "{bad}");
        }
        assert!(Filter::parse(&"(".repeat(1000)).is_err());
    }
}
