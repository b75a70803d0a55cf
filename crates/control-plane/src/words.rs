//! A command line into words, as a shell reads it: blanks, quotes, backslashes; no variables, no patterns.

/// The words; `None` when a quote does not end.
pub(crate) fn split(line: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote: Option<char> = None;
    let mut letters = line.chars();
    while let Some(letter) = letters.next() {
        match (quote, letter) {
            (Some('"'), '\\') => match letters.next()? {
                escaped @ ('"' | '\\' | '$' | '`') => word.get_or_insert_default().push(escaped),
                other => word.get_or_insert_default().extend(['\\', other]),
            },
            (Some(open), letter) if open == letter => quote = None,
            (Some(_), letter) => word.get_or_insert_default().push(letter),
            (None, '\'' | '"') => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            (None, '\\') => word.get_or_insert_default().push(letters.next()?),
            (None, letter) if letter.is_whitespace() => words.extend(word.take()),
            (None, letter) => word.get_or_insert_default().push(letter),
        }
    }
    words.extend(word);
    quote.is_none().then_some(words)
}

#[cfg(test)]
mod tests {
    use super::split;

    #[test]
    fn words_are_split_as_a_shell_does() {
        let check = |line: &str, words: &[&str]| {
            assert_eq!(split(line), Some(words.iter().map(|word| (*word).to_owned()).collect()), "{line}");
        };
        check("", &[]);
        check("/bin/sh", &["/bin/sh"]);
        check("  ls  -l\t/srv ", &["ls", "-l", "/srv"]);
        check(r#"sh -c 'echo "$HOME" \n' """#, &["sh", "-c", r#"echo "$HOME" \n"#, ""]);
        check(r#"a\ b "c\"d\n" e'f'g"#, &["a b", r#"c"d\n"#, "efg"]);
        for open in ["'x", "\"x", "x\\"] {
            assert_eq!(split(open), None, "{open}");
        }
    }
}
