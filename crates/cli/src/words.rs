//! `--command` and `--args` take words that look like flags: `--command /bin/sh -c 'sleep 1'`.
//!
//! clap takes either every following word or none that begins with a dash. Here the words of these two flags are joined
//! to it (`--command=-c`), up to the next flag of Cove's.

use std::ffi::OsString;

/// Flags whose words are joined.
const FLAGS: [&str; 2] = ["--command", "--args"];
/// One-letter flags of the commands that have these flags; they end the words.
const SHORT: [&str; 9] = ["-g", "-h", "-i", "-l", "-n", "-o", "-s", "-w", "-y"];

/// The command line as clap is to read it.
pub(crate) fn joined(line: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let line = with_show(line.into_iter().collect());
    if line.get(1).is_none_or(|noun| !["containerapp", "job", "sessionpool"].iter().any(|known| noun == known)) {
        return line;
    }
    let mut read = Vec::with_capacity(line.len());
    let mut line = line.into_iter().peekable();
    while let Some(word) = line.next() {
        let flag = word.to_str().filter(|word| FLAGS.contains(word)).map(str::to_owned);
        let Some(flag) = flag else {
            read.push(word);
            continue;
        };
        let mut is_alone = true;
        while let Some(next) = line.next_if(|next| !ends_words(next)) {
            is_alone = false;
            let mut joined = OsString::from(format!("{flag}="));
            joined.push(next);
            read.push(joined);
        }
        if is_alone {
            read.push(word);
        }
    }
    read
}

/// `job logs --follow` is `job logs show --follow`: there is no other verb.
fn with_show(mut line: Vec<OsString>) -> Vec<OsString> {
    let noun = if line.get(1).is_some_and(|noun| noun == "containerapp") { 2 } else { 1 };
    let is_logs = line.get(noun).is_some_and(|word| word == "job") && line.get(noun + 1).is_some_and(|w| w == "logs");
    let is_help = |word: &OsString| word == "--help" || word == "-h";
    if is_logs && line.get(noun + 2).is_some_and(|word| ends_words(word) && !is_help(word)) {
        line.insert(noun + 2, "show".into());
    }
    line
}

fn ends_words(word: &OsString) -> bool {
    word.to_str().is_some_and(|word| word.starts_with("--") || SHORT.contains(&word))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(line: &str, expected: &str) {
        let read = joined(line.split(' ').map(OsString::from));
        let read: Vec<&str> = read.iter().map(|word| word.to_str().unwrap()).collect();
        assert_eq!(read.join(" "), expected);
    }

    #[test]
    fn words_with_dashes_belong_to_the_flag() {
        check(
            "cove containerapp create --command /bin/sh -c x --args -v 1 -n web --cpu 1",
            "cove containerapp create --command=/bin/sh --command=-c --command=x --args=-v --args=1 -n web --cpu 1",
        );
        check("cove containerapp update --args --cpu 1", "cove containerapp update --args --cpu 1");
        check("cove containerapp update --args=-c x", "cove containerapp update --args=-c x");
    }

    #[test]
    fn logs_of_jobs_need_no_verb() {
        check("cove job logs --follow -n j", "cove job logs show --follow -n j");
        check("cove containerapp job logs -n j", "cove containerapp job logs show -n j");
        check("cove job logs show -n j", "cove job logs show -n j");
        check("cove job logs --help", "cove job logs --help");
    }

    #[test]
    fn other_commands_are_left_alone() {
        check("cove az -- containerapp create --args -c x", "cove az -- containerapp create --args -c x");
    }
}
