//! `containerapp env certificate`: certificates of one's own and managed ones.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use reqwest::Method;
use serde_json::{Value, json};

use super::EnvironmentRef;
use crate::{
    client::{Client, Wait, encode},
    failure::Failure,
    file,
    output::View,
    session::Session,
    text,
};

/// Longest wait for a managed certificate.
const ISSUED_WITHIN: Duration = Duration::from_secs(1200);
/// Pause between two looks at one.
const LOOK_EVERY: Duration = Duration::from_millis(500);

#[derive(Debug, clap::Subcommand)]
pub(crate) enum CertificateCommand {
    /// Upload a certificate with its key.
    Upload(UploadArgs),
    /// Create a managed certificate for a host name.
    Create {
        #[command(flatten)]
        environment: EnvironmentRef,
        /// Host name.
        #[arg(long)]
        hostname: String,
        /// Name of the certificate [default: made from the host name].
        #[arg(short, long)]
        certificate_name: Option<String>,
        /// How the domain is proven: HTTP, CNAME or TXT.
        #[arg(short, long, ignore_case = true, value_parser = ["HTTP", "CNAME", "TXT"])]
        validation_method: String,
    },
    /// List certificates.
    List {
        #[command(flatten)]
        environment: EnvironmentRef,
        #[command(flatten)]
        filter: Filter,
        /// Managed ones only.
        #[arg(short, long, conflicts_with_all = ["private_key_certificates_only", "thumbprint"])]
        managed_certificates_only: bool,
        /// Ones with a private key only.
        #[arg(short, long)]
        private_key_certificates_only: bool,
    },
    /// Delete a certificate.
    Delete {
        #[command(flatten)]
        environment: EnvironmentRef,
        #[command(flatten)]
        filter: Filter,
        /// Do not ask.
        #[arg(short, long)]
        yes: bool,
    },
}

#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct Filter {
    /// Name or id of the certificate.
    #[arg(short, long)]
    pub(crate) certificate: Option<String>,
    /// Thumbprint of the certificate.
    #[arg(short, long)]
    pub(crate) thumbprint: Option<String>,
    /// Region; this server has one.
    #[arg(short, long, hide = true)]
    location: Option<String>,
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct UploadArgs {
    #[command(flatten)]
    environment: EnvironmentRef,
    #[command(flatten)]
    certificate: FileArgs,
    /// Region; this server has one.
    #[arg(short, long, hide = true)]
    location: Option<String>,
    /// Ask before a certificate of this name is replaced.
    #[arg(long)]
    show_prompt: bool,
}

/// A certificate in a file.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct FileArgs {
    /// The certificate with its key, .pem or .pfx.
    #[arg(short = 'f', long, value_name = "FILE")]
    certificate_file: PathBuf,
    /// Password of the file.
    #[arg(short, long)]
    password: Option<String>,
    /// Name of the certificate [default: made from the environment's].
    #[arg(short, long)]
    certificate_name: Option<String>,
}

pub(super) async fn run(session: &Session, command: CertificateCommand) -> Result<(), Failure> {
    match command {
        CertificateCommand::Upload(args) => {
            let path = args.environment.path(session);
            if let Some(name) = args.certificate.certificate_name.as_ref().filter(|_| args.show_prompt)
                && session.client.find(&format!("{path}/certificates/{}", encode(name))).await?.is_some()
            {
                session.confirm(&format!("Replace the certificate `{name}`?"), false)?;
            }
            session.print(upload(session, &path, &args.certificate).await?, View::Certificates)
        }
        CertificateCommand::Create { environment, hostname, certificate_name, validation_method } => {
            let path = environment.path(session);
            let name = certificate_name.unwrap_or_else(|| managed_name(&hostname));
            let made = create_managed(&session.client, &path, &name, &hostname, &validation_method).await?;
            session.print(made, View::Certificates)
        }
        CertificateCommand::List {
            environment,
            filter,
            managed_certificates_only: managed,
            private_key_certificates_only: private,
        } => {
            let path = environment.path(session);
            let found =
                find(&session.client, &path, &filter, !private && filter.thumbprint.is_none(), !managed).await?;
            session.print(Value::Array(found), View::Certificates)
        }
        CertificateCommand::Delete { environment, filter, yes } => {
            if filter.certificate.is_none() && filter.thumbprint.is_none() {
                return Err(Failure::usage("which certificate?").hint("add --certificate NAME or --thumbprint"));
            }
            delete(session, &environment.path(session), &filter, yes).await
        }
    }
}

async fn delete(session: &Session, path: &str, filter: &Filter, yes: bool) -> Result<(), Failure> {
    let found = find(&session.client, path, filter, filter.thumbprint.is_none(), true).await?;
    let ids: Vec<&str> = found.iter().filter_map(|certificate| certificate["id"].as_str()).collect();
    match (ids.as_slice(), &filter.thumbprint) {
        ([], _) => return Err(Failure::not_found("the environment has no such certificate")),
        ([_, _, ..], None) => {
            return Err(Failure::usage(format!("there are several:\n  {}", ids.join("\n  ")))
                .hint("name one by its id with --certificate"));
        }
        _ => {}
    }
    session.confirm(&format!("Delete {}?", ids.join(", ")), yes)?;
    for id in ids {
        session.client.delete(id, Wait::Done).await?;
    }
    Ok(())
}

/// Bytes of a certificate file in base64, as the API takes them.
pub(crate) fn read(path: &Path) -> Result<String, Failure> {
    let bytes = file::bytes(path)?;
    if bytes.is_empty() {
        return Err(Failure::new(format!("`{}` is empty", path.display())).hint("a .pem or .pfx file with its key"));
    }
    Ok(base64(&bytes))
}

/// Uploads a file to the environment at `path`; the certificate.
pub(crate) async fn upload(session: &Session, path: &str, args: &FileArgs) -> Result<Value, Failure> {
    let client = &session.client;
    let environment = client.get(path).await?;
    let name = args.certificate_name.clone().unwrap_or_else(|| {
        let name = environment["name"].as_str().unwrap_or("env");
        let id = uuid::Uuid::new_v4().simple().to_string();
        format!("{name}-{}", &id[..8])
    });
    let body = json!({
        "location": environment["location"],
        "properties": { "value": read(&args.certificate_file)?, "password": args.password.as_deref().unwrap_or_default() },
    });
    let target = format!("{path}/certificates/{}", encode(&name));
    client.write(Method::PUT, &target, Some(&body), Wait::Done).await
}

/// A name for a managed certificate, unlikely to be taken.
pub(crate) fn managed_name(hostname: &str) -> String {
    let id = uuid::Uuid::new_v4().simple().to_string();
    let host: String = hostname
        .chars()
        .take(24)
        .map(|char| if char.is_ascii_alphanumeric() { char.to_ascii_lowercase() } else { '-' })
        .collect();
    format!("mc-{}-{}", host.trim_matches('-'), &id[..6])
}

/// Asks for a managed certificate and waits until it is issued or refused.
pub(crate) async fn create_managed(
    client: &Client,
    path: &str,
    name: &str,
    hostname: &str,
    method: &str,
) -> Result<Value, Failure> {
    let location = client.get(path).await?["location"].take();
    let body = json!({ "location": location,
        "properties": { "subjectName": hostname, "domainControlValidation": method.to_uppercase() } });
    let target = format!("{path}/managedCertificates/{}", encode(name));
    let mut made = client.write(Method::PUT, &target, Some(&body), Wait::Done).await?;
    let deadline = Instant::now() + ISSUED_WITHIN;
    let mut is_told = false;
    while made["properties"]["provisioningState"] == "Pending" {
        if let Some(token) = made["properties"]["validationToken"].as_str().filter(|_| !is_told) {
            is_told = true;
            text::note(&format!("Add a TXT record `_acme-challenge.{hostname}` with the value `{token}`."));
        }
        if Instant::now() > deadline {
            return Err(Failure::new("the certificate has not been issued").hint("look at it with `list`"));
        }
        tokio::time::sleep(LOOK_EVERY).await;
        made = client.get(&target).await?;
    }
    if made["properties"]["provisioningState"] == "Failed" {
        let why = made["properties"]["error"].as_str().unwrap_or("the server does not say why").to_owned();
        return Err(Failure::new(format!("the certificate was not issued: {why}")));
    }
    Ok(made)
}

/// Certificates of the environment at `path` that match.
pub(crate) async fn find(
    client: &Client,
    path: &str,
    filter: &Filter,
    managed: bool,
    private: bool,
) -> Result<Vec<Value>, Failure> {
    let mut found = Vec::new();
    for kind in [managed.then_some("managedCertificates"), private.then_some("certificates")].into_iter().flatten() {
        if let Value::Array(list) = client.list(&format!("{path}/{kind}")).await? {
            found.extend(list);
        }
    }
    found.retain(|certificate| matches(certificate, filter));
    Ok(found)
}

fn matches(certificate: &Value, filter: &Filter) -> bool {
    let is = |field: &Value, wanted: &Option<String>| match wanted {
        Some(wanted) => field.as_str().is_some_and(|known| known.eq_ignore_ascii_case(wanted)),
        None => true,
    };
    let by_id = filter.certificate.as_ref().is_some_and(|name| name.starts_with('/'));
    is(&certificate[if by_id { "id" } else { "name" }], &filter.certificate)
        && is(&certificate["properties"]["thumbprint"], &filter.thumbprint)
}

fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let mut word = [0; 3];
        word[..chunk.len()].copy_from_slice(chunk);
        let bits = u32::from_be_bytes([0, word[0], word[1], word[2]]);
        for index in 0..4_usize {
            let sextet = (bits >> (18 - 6 * index)) & 0x3F;
            let is_padding = index > chunk.len();
            text.push(if is_padding { '=' } else { char::from(ALPHABET[sextet as usize]) });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_become_base64() {
        for (bytes, expected) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")] {
            assert_eq!(base64(bytes.as_bytes()), expected);
        }
    }

    #[test]
    fn a_certificate_is_named_by_name_id_or_thumbprint() {
        let certificate = json!({"id": "/a/B", "name": "b", "properties": {"thumbprint": "AB"}});
        let by = |certificate: Option<&str>, thumbprint: Option<&str>| Filter {
            certificate: certificate.map(str::to_owned),
            thumbprint: thumbprint.map(str::to_owned),
            location: None,
        };
        assert!(matches(&certificate, &by(Some("B"), None)) && matches(&certificate, &by(Some("/A/b"), None)));
        assert!(matches(&certificate, &by(None, Some("ab"))) && !matches(&certificate, &by(Some("c"), Some("ab"))));
    }
}
