//! Sources where one HTTP call gives one number: a row of [`TABLE`] each.
//!
//! **Invariant:** a row does no IO: it says what is asked ([`Asked`]) and where the number is ([`Take`]).

use cove_scaling::source::{Answer, number_at, number_of};
use http::HeaderValue;
use http::header::{ACCEPT, ORIGIN};
use reqwest::Url;
use serde_json::{Value, json};

use super::auth::{Auth, OAuth};
use super::{Call, Client, Http, Reply, address, below, flag, parse_address, place, prometheus, required, tls};
use crate::source::{Context, OpenError, ReadError, ReadFuture, Source, Trigger};
use crate::tls::TlsOptions;

/// One row: the scaler, and what it asks.
type Row = (&'static str, fn(&Trigger, &Context) -> Result<Asked, OpenError>);

/// All rows, sorted.
const TABLE: [Row; 13] = [
    ("activemq", activemq),
    ("arangodb", arangodb),
    ("artemis-queue", artemis),
    ("azure-log-analytics", log_analytics),
    ("clickhouse", clickhouse),
    ("couchdb", couchdb),
    ("elasticsearch", elasticsearch),
    ("graphite", graphite),
    ("influxdb", influxdb),
    ("loki", loki),
    ("opensearch", opensearch),
    ("pulsar", pulsar),
    ("solr", solr),
];

/// What a rule asks.
struct Asked {
    call: Call,
    auth: Auth,
    tls: TlsOptions,
    take: Take,
    /// Nothing at the number's place is 0; otherwise it fails.
    is_null_zero: bool,
}

/// Where the number is.
#[derive(Clone, Debug)]
enum Take {
    /// At a path of a JSON answer.
    Json(String),
    /// How many items a JSON array has, at a key of the answer.
    Items(&'static str),
    /// At `value` of a Jolokia answer, whose own `status` must be 200.
    Jolokia,
    /// The single series of a query, as Prometheus gives it.
    Series,
    /// The last point of graphite's single series.
    LastPoint,
    /// The first `_value` of InfluxDB's annotated CSV.
    InfluxCsv,
    /// The first column of the first line.
    FirstField,
    /// `msgBacklog` of this subscription.
    Backlog(String),
}

/// One number of one server.
#[derive(Debug)]
pub(crate) struct OneNumber {
    client: Client,
    auth: Auth,
    call: Call,
    take: Take,
    is_null_zero: bool,
}

/// Opens a rule of the table; `None` when it has no such scaler.
pub(crate) fn open(http: &Http, trigger: &Trigger, context: &Context) -> Option<Result<OneNumber, OpenError>> {
    let (_, row) = TABLE.iter().find(|(scaler, _)| *scaler == trigger.scaler)?;
    Some(row(trigger, context).and_then(|asked| {
        let client = http.client(&asked.tls, context)?;
        let Asked { call, auth, take, is_null_zero, .. } = asked;
        Ok(OneNumber { client, auth, call, take, is_null_zero })
    }))
}

impl Source for OneNumber {
    fn read(&self) -> ReadFuture<'_> {
        Box::pin(async {
            let reply = self.auth.fetch(&self.client, self.call.clone()).await?;
            let place = place(&self.call.url);
            let number = self.take.number(&reply, &place).map_err(|why| ReadError::new(format!("{place} {why}")))?;
            match number.filter(|number| number.is_finite()) {
                Some(number) => Ok(Answer::Number(number)),
                None if self.is_null_zero => Ok(Answer::Number(0.0)),
                None => Err(ReadError::new(format!("{place} gave no number"))),
            }
        })
    }
}

impl Take {
    /// The number; `None` where the place is there and empty.
    fn number(&self, reply: &Reply, place: &str) -> Result<Option<f64>, String> {
        let json = || reply.json(place).map_err(|_| "gave no JSON".to_owned());
        match self {
            Self::Json(path) => at(&json()?, path),
            Self::Items(key) => {
                let answer = json()?;
                let items = answer.get(key).and_then(Value::as_array).ok_or_else(|| format!("gave no `{key}`"))?;
                #[expect(clippy::cast_precision_loss, reason = "items of one answer")]
                Ok(Some(items.len() as f64))
            }
            Self::Jolokia => {
                let answer = json()?;
                match answer.get("status").and_then(Value::as_u64) {
                    Some(200) => at(&answer, "value"),
                    Some(status) => Err(format!("answered status {status}; look at the names of broker and queue")),
                    None => Err("gave no answer of Jolokia".to_owned()),
                }
            }
            Self::Series => match prometheus::series(&json()?)? {
                Answer::Prometheus(series) if series.len() > 1 => {
                    Err(format!("gave {} series; aggregate them to one", series.len()))
                }
                Answer::Prometheus(series) => Ok(series.first().copied().flatten()),
                _ => Err("gave no series".to_owned()),
            },
            Self::LastPoint => last_point(&json()?),
            Self::InfluxCsv => influx_value(&reply.text()),
            Self::FirstField => {
                let text = reply.text();
                let field = text.lines().next().and_then(|line| line.split('\t').next()).unwrap_or_default();
                if field.is_empty() || field == "\\N" {
                    return Ok(None);
                }
                number_of(field).map(Some).map_err(|error| format!("gave no number: {error}"))
            }
            Self::Backlog(subscription) => {
                let answer = json()?;
                let one = answer.get("subscriptions").and_then(|all| all.get(subscription));
                let one = one.ok_or_else(|| format!("has no subscription `{subscription}`"))?;
                at(one, "msgBacklog")
            }
        }
    }
}

/// The number at a path; null is none.
fn at(tree: &Value, path: &str) -> Result<Option<f64>, String> {
    let pointer: String = path.split('.').map(|key| format!("/{key}")).collect();
    if tree.pointer(&pointer).is_some_and(Value::is_null) {
        return Ok(None);
    }
    number_at(tree, path).map(Some).map_err(|error| format!("gave no number: {error}"))
}

/// Graphite: `[{"datapoints": [[value, time], ...]}]`, the youngest points last and often null.
fn last_point(answer: &Value) -> Result<Option<f64>, String> {
    let series = answer.as_array().ok_or("gave no list of series")?;
    match series.as_slice() {
        [] => Ok(Some(0.0)),
        [one] => {
            let points = one.get("datapoints").and_then(Value::as_array).ok_or("gave a series without datapoints")?;
            if points.is_empty() {
                return Ok(Some(0.0));
            }
            Ok(points.iter().rev().find_map(|point| point.get(0)?.as_f64()))
        }
        several => Err(format!("gave {} series; aggregate them to one", several.len())),
    }
}

/// InfluxDB 2: annotations begin with `#`, a header names the columns, then come rows.
fn influx_value(text: &str) -> Result<Option<f64>, String> {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let Some(header) = lines.next() else { return Ok(None) };
    let column = header.split(',').position(|name| name == "_value").ok_or("gave no column `_value`")?;
    let Some(row) = lines.next() else { return Ok(None) };
    let field = row.split(',').nth(column).unwrap_or_default();
    number_of(field).map(Some).map_err(|error| format!("gave no number: {error}"))
}

impl Asked {
    /// A call whose number is at `take`, with `authModes` of the rule.
    fn of(trigger: &Trigger, call: Call, take: Take) -> Result<Self, OpenError> {
        Ok(Self { call, auth: Auth::of(trigger)?, tls: tls(trigger)?, take, is_null_zero: false })
    }

    /// Shows `username` and `password` where they are given.
    fn with_login(mut self, trigger: &Trigger) -> Result<Self, OpenError> {
        if let Some(user) = trigger.get("username") {
            self.auth.basic(user, trigger.get("password").unwrap_or_default())?;
        }
        Ok(self)
    }
}

fn jolokia(
    trigger: &Trigger,
    template: &str,
    default: impl FnOnce(&str) -> Result<String, OpenError>,
) -> Result<Asked, OpenError> {
    required(trigger, "username")?;
    required(trigger, "password")?;
    let url = match trigger.get(template) {
        Some(whole) => parse_address(template, whole)?,
        None => parse_address("managementEndpoint", &default(required(trigger, "managementEndpoint")?)?)?,
    };
    let origin = trigger.get("corsHeader").map_or_else(|| url.origin().ascii_serialization(), str::to_owned);
    let mut call = Call::get(url);
    let origin =
        HeaderValue::from_str(&origin).map_err(|_| OpenError::metadata("corsHeader is no value of a header"))?;
    call.headers.insert(ORIGIN, origin);
    Asked::of(trigger, call, Take::Jolokia)?.with_login(trigger)
}

fn activemq(trigger: &Trigger, _: &Context) -> Result<Asked, OpenError> {
    jolokia(trigger, "restAPITemplate", |endpoint| {
        let (broker, queue) = (required(trigger, "brokerName")?, required(trigger, "destinationName")?);
        Ok(format!(
            "http://{endpoint}/api/jolokia/read/org.apache.activemq:type=Broker,brokerName={broker},\
             destinationType=Queue,destinationName={queue}/QueueSize"
        ))
    })
}

fn artemis(trigger: &Trigger, _: &Context) -> Result<Asked, OpenError> {
    jolokia(trigger, "restApiTemplate", |endpoint| {
        let broker = required(trigger, "brokerName")?;
        let (address, queue) = (required(trigger, "brokerAddress")?, required(trigger, "queueName")?);
        Ok(format!(
            "http://{endpoint}/console/jolokia/read/org.apache.activemq.artemis:broker=\"{broker}\",component=addresses,\
             address=\"{address}\",subcomponent=queues,routing-type=\"anycast\",queue=\"{queue}\"/MessageCount"
        ))
    })
}

fn arangodb(trigger: &Trigger, _: &Context) -> Result<Asked, OpenError> {
    let endpoint = parse_address("endpoints", first(required(trigger, "endpoints")?))?;
    let url = below(&endpoint, &["_db", required(trigger, "dbName")?, "_api", "cursor"]);
    let body = json!({ "query": required(trigger, "query")? });
    Asked::of(trigger, post_json(url, &body), Take::Json("result.0.value".to_owned()))
}

fn clickhouse(trigger: &Trigger, _: &Context) -> Result<Asked, OpenError> {
    let secure = trigger.get("tls").is_some_and(|tls| matches!(tls, "true" | "enable"));
    let scheme = if secure { "https" } else { "http" };
    let mut url = match trigger.get("connectionString") {
        Some(text) => {
            let rest = text.split_once("://").map_or(text, |(_, rest)| rest);
            parse_address("connectionString", &format!("{scheme}://{rest}"))?
        }
        None => {
            let port = trigger.get("port").unwrap_or(if secure { "8443" } else { "8123" });
            parse_address("host", &format!("{scheme}://{}:{port}", required(trigger, "host")?))?
        }
    };
    let in_path = url.path().trim_matches('/').to_owned();
    let database = trigger.get("database").map_or(in_path, str::to_owned);
    let user = trigger.get("username").unwrap_or_else(|| url.username());
    let user = if user.is_empty() { "default".to_owned() } else { user.to_owned() };
    let password = trigger.get("password").or_else(|| url.password()).unwrap_or_default().to_owned();
    url.set_path("/");
    let wrong =
        |()| OpenError::metadata("connectionString is no address such as clickhouse://user:password@host:8123/db");
    url.set_username("").and_then(|()| url.set_password(None)).map_err(wrong)?;
    url.set_query(None);
    url.query_pairs_mut().append_pair("default_format", "TabSeparated").append_pair("readonly", "1");
    if !database.is_empty() {
        url.query_pairs_mut().append_pair("database", &database);
    }
    let call = Call::post(url, "text/plain", required(trigger, "query")?.to_owned());
    let mut asked = Asked::of(trigger, call, Take::FirstField)?;
    asked.auth.header("x-clickhouse-user", &user)?;
    if !password.is_empty() {
        asked.auth.header("x-clickhouse-key", &password)?;
    }
    Ok(asked)
}

fn couchdb(trigger: &Trigger, _: &Context) -> Result<Asked, OpenError> {
    let endpoint = match trigger.get("connectionString") {
        Some(text) => parse_address("connectionString", text)?,
        None => {
            let port = trigger.get("port").unwrap_or("5984");
            parse_address("host", &format!("http://{}:{port}", required(trigger, "host")?))?
        }
    };
    let url = below(&endpoint, &[required(trigger, "dbName")?, "_find"]);
    let query = required(trigger, "query")?;
    let query: Value =
        serde_json::from_str(query).map_err(|error| OpenError::metadata(format!("query is no JSON: {error}")))?;
    Asked::of(trigger, post_json(url, &query), Take::Items("docs"))?.with_login(trigger)
}

fn elasticsearch(trigger: &Trigger, _: &Context) -> Result<Asked, OpenError> {
    let mut asked = search(trigger)?;
    match trigger.get("apiKey") {
        Some(key) => asked.auth.header("authorization", &format!("ApiKey {key}"))?,
        None => asked = asked.with_login(trigger)?,
    }
    Ok(asked)
}

fn opensearch(trigger: &Trigger, _: &Context) -> Result<Asked, OpenError> {
    let mut asked = search(trigger)?.with_login(trigger)?;
    let text = |key: &str| trigger.get(key).map(str::to_owned);
    asked.tls = TlsOptions { ca: text("caCert"), cert: text("clientCert"), key: text("clientKey"), ..asked.tls };
    asked.tls.check()?;
    Ok(asked)
}

/// A search of Elasticsearch or OpenSearch, by a query or by a stored template.
fn search(trigger: &Trigger) -> Result<Asked, OpenError> {
    let endpoint = match (trigger.get("addresses"), trigger.get("cloudID")) {
        (Some(addresses), _) => parse_address("addresses", first(addresses))?,
        (None, Some(id)) => parse_address("cloudID", &cloud(id)?)?,
        (None, None) => return Err(OpenError::metadata("give addresses or cloudID")),
    };
    let index = required(trigger, "index")?.split(';').map(str::trim).collect::<Vec<_>>().join(",");
    let (url, body) = match (trigger.get("query"), trigger.get("searchTemplateName")) {
        (Some(query), None) => {
            let query = serde_json::from_str(query);
            let query: Value = query.map_err(|error| OpenError::metadata(format!("query is no JSON: {error}")))?;
            (below(&endpoint, &[&index, "_search"]), query)
        }
        (None, Some(template)) => {
            let parameters = trigger.get("parameters").unwrap_or_default().split(';').map(str::trim);
            let pair = |part: &str| {
                let (name, value) = part
                    .split_once(':')
                    .ok_or_else(|| OpenError::metadata("parameters must be name:value pairs between semicolons"))?;
                Ok((name.trim().to_owned(), Value::from(value.trim())))
            };
            let parameters = parameters.filter(|part| !part.is_empty()).map(pair);
            let parameters = parameters.collect::<Result<serde_json::Map<_, _>, OpenError>>()?;
            (below(&endpoint, &[&index, "_search", "template"]), json!({ "id": template, "params": parameters }))
        }
        _ => return Err(OpenError::metadata("give either query or searchTemplateName")),
    };
    let take = Take::Json(required(trigger, "valueLocation")?.to_owned());
    let mut asked = Asked::of(trigger, post_json(url, &body), take)?;
    asked.is_null_zero = flag(trigger, "ignoreNullValues", false)?;
    Ok(asked)
}

/// The address in an Elastic Cloud id: `name:base64(host$elasticsearch$kibana)`.
fn cloud(id: &str) -> Result<String, OpenError> {
    use base64::Engine;
    let wrong = || OpenError::metadata("cloudID is no id of Elastic Cloud; expected name:BASE64");
    let encoded = id.rsplit(':').next().unwrap_or_default();
    let text = base64::engine::general_purpose::STANDARD.decode(encoded).map_err(|_| wrong())?;
    let text = String::from_utf8(text).map_err(|_| wrong())?;
    let mut parts = text.split('$');
    match (parts.next(), parts.next()) {
        (Some(host), Some(cluster)) if !host.is_empty() => Ok(format!("https://{cluster}.{host}")),
        _ => Err(wrong()),
    }
}

fn graphite(trigger: &Trigger, _: &Context) -> Result<Asked, OpenError> {
    let mut url = below(&address(trigger, "serverAddress")?, &["render"]);
    url.query_pairs_mut()
        .append_pair("from", required(trigger, "queryTime")?)
        .append_pair("target", required(trigger, "query")?)
        .append_pair("format", "json");
    Asked::of(trigger, Call::get(url), Take::LastPoint)
}

fn influxdb(trigger: &Trigger, _: &Context) -> Result<Asked, OpenError> {
    let server = address(trigger, "serverURL")?;
    let (query, token) = (required(trigger, "query")?, required(trigger, "authToken")?);
    if trigger.get("influxVersion") == Some("3") {
        let path = if trigger.get("queryType") == Some("FlightSQL") { "query_sql" } else { "query_influxql" };
        let url = below(&server, &["api", "v3", path]);
        let body = json!({ "db": required(trigger, "database")?, "q": query, "format": "json" });
        let take = Take::Json(format!("0.{}", required(trigger, "metricKey")?));
        let mut asked = Asked::of(trigger, post_json(url, &body), take)?;
        asked.auth.bearer(token)?;
        return Ok(asked);
    }
    let mut url = below(&server, &["api", "v2", "query"]);
    url.query_pairs_mut().append_pair("org", required(trigger, "organizationName")?);
    let mut call = Call::post(url, "application/vnd.flux", query.to_owned());
    call.headers.insert(ACCEPT, HeaderValue::from_static("application/csv"));
    let mut asked = Asked::of(trigger, call, Take::InfluxCsv)?;
    asked.auth.header("authorization", &format!("Token {token}"))?;
    Ok(asked)
}

fn log_analytics(trigger: &Trigger, context: &Context) -> Result<Asked, OpenError> {
    let cloud = trigger.get("cloud").unwrap_or("azurePublicCloud").to_ascii_lowercase();
    let (login, api) = match cloud.as_str() {
        "azurepubliccloud" => ("https://login.microsoftonline.com", "https://api.loganalytics.io"),
        "azureusgovernmentcloud" => ("https://login.microsoftonline.us", "https://api.loganalytics.us"),
        "azurechinacloud" => ("https://login.chinacloudapi.cn", "https://api.loganalytics.azure.cn"),
        "private" => (required(trigger, "activeDirectoryEndpoint")?, required(trigger, "logAnalyticsResourceURL")?),
        _ => return Err(OpenError::metadata("cloud is not known to azure-log-analytics")),
    };
    let api = trigger.get("logAnalyticsResourceURL").unwrap_or(api).trim_end_matches('/');
    let url = below(
        &parse_address("logAnalyticsResourceURL", api)?,
        &["v1", "workspaces", required(trigger, "workspaceId")?, "query"],
    );
    let body = json!({ "query": required(trigger, "query")? });
    let mut asked = Asked::of(trigger, post_json(url, &body), Take::Json("tables.0.rows.0.0".to_owned()))?;
    if trigger.identity.is_some() {
        asked.auth.identity(trigger, context, api);
    } else {
        let login = parse_address("activeDirectoryEndpoint", login)?;
        let login = below(&login, &[required(trigger, "tenantId")?, "oauth2", "v2.0", "token"]);
        let (id, secret) = (required(trigger, "clientId")?, required(trigger, "clientSecret")?);
        asked.auth.oauth(OAuth::new(login, id, secret, &format!("{api}/.default"), &[]));
    }
    Ok(asked)
}

fn loki(trigger: &Trigger, _: &Context) -> Result<Asked, OpenError> {
    let mut url = below(&address(trigger, "serverAddress")?, &["loki", "api", "v1", "query"]);
    url.query_pairs_mut().append_pair("query", required(trigger, "query")?);
    let mut asked = Asked::of(trigger, Call::get(url), Take::Series)?;
    if let Some(tenant) = trigger.get("tenantName") {
        asked.auth.header("x-scope-orgid", tenant)?;
    }
    asked.is_null_zero = flag(trigger, "ignoreNullValues", true)?;
    Ok(asked)
}

fn pulsar(trigger: &Trigger, _: &Context) -> Result<Asked, OpenError> {
    let topic = required(trigger, "topic")?.trim_start_matches("persistent://");
    let stats = if flag(trigger, "isPartitionedTopic", false)? { "partitioned-stats" } else { "stats" };
    let mut segments = vec!["admin", "v2", "persistent"];
    segments.extend(topic.split('/'));
    segments.push(stats);
    let url = below(&address(trigger, "adminURL")?, &segments);
    let take = Take::Backlog(required(trigger, "subscription")?.to_owned());
    let mut asked = Asked::of(trigger, Call::get(url), take)?;
    let modes = trigger.get("authModes").unwrap_or_default();
    let method = [("bearer", "token"), ("basic", "basic"), ("tls", "tls")];
    if let Some((_, method)) = method.iter().find(|(mode, _)| modes.split(',').any(|one| one.trim() == *mode)) {
        asked.auth.header("x-pulsar-auth-method-name", method)?;
    }
    Ok(asked)
}

fn solr(trigger: &Trigger, _: &Context) -> Result<Asked, OpenError> {
    let mut url = below(&address(trigger, "host")?, &["solr", required(trigger, "collection")?, "select"]);
    url.query_pairs_mut()
        .append_pair("q", trigger.get("query").unwrap_or("*:*"))
        .append_pair("rows", "0")
        .append_pair("wt", "json");
    required(trigger, "username")?;
    Asked::of(trigger, Call::get(url), Take::Json("response.numFound".to_owned()))?.with_login(trigger)
}

fn post_json(url: Url, body: &Value) -> Call {
    Call::post(url, "application/json", body.to_string())
}

/// The first of several addresses between commas.
fn first(addresses: &str) -> &str {
    addresses.split(',').next().unwrap_or_default().trim()
}

#[cfg(test)]
mod tests;
