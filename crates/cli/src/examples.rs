//! An example under every command's `--help`: written by hand where flags belong together, made from the required flags
//! elsewhere.

use clap::{Arg, Command};

/// Commands whose required flags alone show little.
const BY_HAND: [(&str, &str); 39] = [
    ("load", "http://web.env.localhost:8080/ --rps 500 --duration 30s --during deploy web"),
    ("scale simulate", "--app web --rules new.yaml"),
    ("scale suggest", "--app web"),
    ("clock advance", "5m"),
    ("containerapp port-forward", "-n web -g rg 5000:8080"),
    (
        "containerapp create",
        "-n web -g rg --environment env --image cove.local/sample:latest --ingress external --target-port 80 --min-replicas 0",
    ),
    (
        "containerapp up",
        "-n web --image mcr.microsoft.com/k8se/quickstart:latest\n  cove containerapp up -n web --source .",
    ),
    ("containerapp update", "-n web -g rg --set-env-vars COLOUR=red --max-replicas 5"),
    ("containerapp compose create", "-g rg -e env -f docker-compose.yml"),
    ("containerapp logs show", "-n web -g rg --follow"),
    ("containerapp revision copy", "-n web -g rg --from-revision web--a --image web:2"),
    ("containerapp revision show", "--revision web--a -n web -g rg"),
    ("containerapp revision restart", "--revision web--a -n web -g rg"),
    ("containerapp revision activate", "--revision web--a -n web -g rg"),
    ("containerapp revision deactivate", "--revision web--a -n web -g rg"),
    ("containerapp ingress enable", "-n web -g rg --type external --target-port 80"),
    ("containerapp ingress update", "-n web -g rg --target-port 8080"),
    ("containerapp ingress traffic set", "-n web -g rg --revision-weight latest=80 web--a=20"),
    (
        "containerapp ingress cors enable",
        "-n web -g rg --allowed-origins https://example.com --allowed-methods GET POST",
    ),
    ("containerapp ingress cors update", "-n web -g rg --max-age 600"),
    ("containerapp identity assign", "-n web -g rg --system-assigned"),
    ("containerapp identity remove", "-n web -g rg --system-assigned"),
    ("containerapp dapr enable", "-n web -g rg --dapr-app-id web --dapr-app-port 8080"),
    ("containerapp env update", "-n env -g rg --enable-mtls"),
    (
        "containerapp env workload-profile add",
        "-n env -g rg -w big --workload-profile-type D4 --min-nodes 0 --max-nodes 2",
    ),
    ("containerapp env workload-profile update", "-n env -g rg -w big --max-nodes 4"),
    (
        "containerapp job create",
        "-n job -g rg --environment env --image job:1 --trigger-type Manual --replica-timeout 600 --replica-retry-limit 1",
    ),
    (
        "containerapp sessionpool create",
        "-n pool -g rg --environment env --container-type CustomContainer --image cove.local/sample:latest --target-port 80",
    ),
    ("containerapp resiliency create", "-n policy -g rg --container-app-name web --recommended"),
    ("containerapp resiliency update", "-n policy -g rg --container-app-name web --timeout 20"),
    ("containerapp auth update", "-n web -g rg --enabled true --action Return401"),
    ("image build-interpreter", "python"),
    ("deployment group create", "-g rg -f main.json -p name=web replicas=2"),
    ("deployment group what-if", "-g rg -f main.json -p name=web"),
    ("deployment sub create", "-n all -f main.json -l local"),
    ("session exec", "-n pool -g rg --identifier user-4711 -- ls -l"),
    ("session code-interpreter execute", "-n code -g rg --identifier user-4711 --code @program.py"),
    ("rest", "--method get --url /subscriptions/{subscriptionId}/resourceGroups"),
    ("az", "-- containerapp list -o table"),
];

/// Values of flags in examples, by the flag's name.
const VALUES: [(&str, &str); 34] = [
    ("container-app-name", "web"),
    ("name", "web"),
    ("resource-group", "rg"),
    ("hostname", "www.example.com"),
    ("environment", "env"),
    ("secrets", "key=value"),
    ("secret-name", "key"),
    ("secret-names", "key"),
    ("label", "blue"),
    ("source", "blue"),
    ("target", "green"),
    ("revision", "web--a"),
    ("replica", "web--a-1"),
    ("mode", "multiple"),
    ("server", "registry.example.com"),
    ("rule-name", "office"),
    ("ip-address", "198.51.100.0/24"),
    ("action", "Allow"),
    ("affinity", "sticky"),
    ("yaml", "file.yaml"),
    ("dapr-component-name", "statestore"),
    ("storage-name", "files"),
    ("azure-file-share-name", "share"),
    ("access-mode", "ReadWrite"),
    ("http-route-config-name", "routes"),
    ("validation-method", "HTTP"),
    ("certificate-file", "cert.pem"),
    ("provider-name", "my-login"),
    ("workload-profile-name", "big"),
    ("scope", "/subscriptions/ID/resourceGroups/rg"),
    ("role", "Reader"),
    ("filename", "result.csv"),
    ("filepath", "data.csv"),
    ("identifier", "user-4711"),
];

/// Whether the command line asks for help.
pub(crate) fn are_asked(line: &[std::ffi::OsString]) -> bool {
    let own = line.iter().skip(1).take_while(|word| *word != "--");
    own.into_iter().any(|word| word == "--help" || word == "-h" || word == "help")
}

/// The tree with an example under each command that does something.
pub(crate) fn added(command: Command) -> Command {
    command.mut_subcommands(|sub| below(sub, ""))
}

fn below(command: Command, parents: &str) -> Command {
    let path =
        if parents.is_empty() { command.get_name().to_owned() } else { format!("{parents} {}", command.get_name()) };
    if command.has_subcommands() {
        return command.mut_subcommands(|sub| below(sub, &path));
    }
    // `job create` is `containerapp job create`, and `session exec` the other way round
    let short = |path: &str| path.strip_prefix("containerapp ").unwrap_or(path).to_owned();
    let is_it = |known: &str| known == path || short(known) == short(&path);
    let flags = BY_HAND.iter().find(|(known, _)| is_it(known)).map(|(_, flags)| (*flags).to_owned());
    let flags = flags.unwrap_or_else(|| required(&command, &path));
    let example = format!("Example:\n  cove {path} {flags}");
    command.after_help(example.trim_end().to_owned())
}

/// The required flags with values that fit.
fn required(command: &Command, path: &str) -> String {
    let flags = command.get_arguments().filter(|argument| argument.is_required_set());
    let words: Vec<String> = flags.map(|argument| shown(argument, path)).collect();
    words.join(" ")
}

fn shown(argument: &Arg, path: &str) -> String {
    let Some(long) = argument.get_long() else {
        let name = argument.get_value_names().and_then(|names| names.first()).map(ToString::to_string);
        let choices = argument.get_possible_values();
        return match (choices.first(), name.as_deref()) {
            (Some(choice), _) => choice.get_name().to_owned(),
            (None, Some("FILE")) => "file.json".to_owned(),
            (None, name) => name.unwrap_or("VALUE").to_lowercase(),
        };
    };
    let value = match long {
        "name" if path.starts_with("containerapp env ") => "env",
        "name" if path.starts_with("containerapp job ") || path.starts_with("job ") => "job",
        "name" if path.contains("sessionpool ") || path.starts_with("session ") => "pool",
        "name" if path.starts_with("group ") => "rg",
        "name" if path.starts_with("deployment ") => "main",
        "name" if path.starts_with("identity ") => "me",
        _ => VALUES.iter().find(|(known, _)| *known == long).map_or("VALUE", |(_, value)| value),
    };
    match argument.get_short() {
        Some(short @ ('n' | 'g')) => format!("-{short} {value}"),
        _ => format!("--{long} {value}"),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn visit(command: &Command, path: &str, see: &mut impl FnMut(&Command, &str)) {
        for sub in command.get_subcommands() {
            let path = if path.is_empty() { sub.get_name().to_owned() } else { format!("{path} {}", sub.get_name()) };
            if sub.has_subcommands() { visit(sub, &path, see) } else { see(sub, &path) }
        }
    }

    #[test]
    fn every_command_has_an_example_that_is_understood() {
        let tree = added(crate::Cove::command());
        let (mut count, mut wrong) = (0, String::new());
        visit(&tree, "", &mut |command, path| {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let example = help.lines().nth(1).unwrap_or_default().trim().to_owned();
            assert!(example.starts_with(&format!("cove {path}")), "{path}: {help}");
            let parsed = crate::Cove::command().try_get_matches_from(example.split(' '));
            if let Err(error) = parsed {
                wrong.push_str(&format!("{example}: {error}"));
            }
            count += 1;
        });
        assert!(wrong.is_empty(), "{wrong}");
        assert!(count > 150, "{count} commands");
        for (path, _) in BY_HAND {
            let mut is_known = false;
            visit(&tree, "", &mut |_, known| is_known |= known == path);
            assert!(is_known, "there is no `{path}`");
        }
    }
}
