//! A row of the access log with the columns of Azure's table `ContainerAppHTTPLogs`, and those that Azure lacks.
//!
//! `ResponseFlags` and `ResponseCodeDetails` are Envoy's words, which queries filter on; what Cove itself says is in the
//! columns that begin with `Cove`.

use cove_traffic::{AccessRecord, Ending};
use serde_json::{Value, json};

/// The row as a JSON object, one member per column.
#[must_use]
pub fn columns(row: &AccessRecord) -> Value {
    let (flags, details) = envoy(row);
    let ended = row.started_at.checked_add(jiff::SignedDuration::from_micros(signed(row.duration_us)));
    json!({
        "TimeGenerated": ended.unwrap_or(row.started_at),
        "Type": "ContainerAppHTTPLogs",
        "_ResourceId": row.environment,
        "EnvironmentName": name(&row.environment),
        "ContainerAppName": name(&row.app),
        "RevisionName": row.revision,
        "ReplicaName": row.replica,
        "Method": row.method,
        "Authority": row.authority,
        "Path": row.path,
        "Protocol": row.protocol,
        "UserAgent": row.user_agent,
        "XForwardedFor": row.forwarded_for,
        "BytesReceived": row.received_bytes,
        "StatusCode": row.status,
        "ResponseCodeDetails": details,
        "ResponseFlags": flags,
        "BytesSent": row.sent_bytes,
        "StartTime": row.started_at,
        "RequestDuration": row.duration_us / 1000,
        "RequestId": row.request_id,
        "ConnectionId": row.connection.to_string(),
        "UpstreamHost": row.upstream.map(|address| address.to_string()).unwrap_or_default(),
        "UpstreamRequestAttemptCount": row.attempts,
        "EnvoyPodName": "",
        "EnvoyContainerId": "",
        "CoveReason": row.reason,
        "CoveEnding": row.ending.word(),
        "CoveClientAddress": row.client,
        "CoveTraceId": row.trace_id,
        "CoveIsUpgraded": row.is_upgraded,
        "CoveDurationMicros": row.duration_us,
        "CoveWaitMicros": row.wait_us,
        "CoveFirstByteMicros": row.head_us,
        "CoveRowsLeftOut": row.left_out,
    })
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// The last part of a resource id.
fn name(id: &str) -> &str {
    id.rsplit('/').next().unwrap_or_default()
}

/// Envoy's response flags and details for what happened.
fn envoy(row: &AccessRecord) -> (&'static str, &'static str) {
    match row.ending {
        Ending::ClientLeft => return ("DC", "downstream_remote_disconnect"),
        Ending::AppCut => return ("UC", "upstream_reset_after_response_started{connection_termination}"),
        Ending::AppSilent => return ("SI", "stream_idle_timeout"),
        Ending::Complete => {}
    }
    match row.reason.as_str() {
        "" if row.attempts == 0 => ("-", "direct_response"),
        "" => ("-", "via_upstream"),
        "unknown-host"
        | "app-internal"
        | "no-path-route"
        | "route-target-missing"
        | "tcp-only"
        | "app-stopped"
        | "revision-inactive"
        | "no-revision" => ("NR", "route_not_found"),
        "hold-queue-full" | "pool-overflow" => ("UO", "overflow"),
        "revision-failed" | "activation-timeout" | "replicas-ejected" => ("UH", "no_healthy_upstream"),
        "request-body-too-large" => ("-", "request_payload_too_large"),
        "too-many-headers" => ("-", "http1.too_many_headers"),
        "upstream-timeout" => ("UT", "response_timeout"),
        "upstream-connect-failed" => ("UF", "upstream_reset_before_response_started{connection_failure}"),
        "upstream-closed" => ("UC", "upstream_reset_before_response_started{connection_termination}"),
        "upstream-invalid" | "upstream-not-http2" => ("UPE", "upstream_reset_before_response_started{protocol_error}"),
        "ip-not-allowed" => ("-", "rbac_access_denied_matched_policy[none]"),
        "request-body-failed" => ("DPE", "downstream_remote_disconnect"),
        _ => ("-", "direct_response"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happened_in_the_words_of_envoy() {
        let row = crate::http::tests::row(200);
        let preflight = AccessRecord { attempts: 0, ..row.clone() };
        assert_eq!(envoy(&preflight), ("-", "direct_response"), "answered here, without a reason");
        let envoy_of = |reason: &str, ending| envoy(&AccessRecord { reason: reason.into(), ending, ..row.clone() }).0;
        for (reason, ending, flags) in [
            ("", Ending::Complete, "-"),
            ("", Ending::ClientLeft, "DC"),
            ("", Ending::AppCut, "UC"),
            ("", Ending::AppSilent, "SI"),
            ("unknown-host", Ending::Complete, "NR"),
            ("upstream-timeout", Ending::Complete, "UT"),
            ("upstream-connect-failed", Ending::Complete, "UF"),
            ("insecure-not-allowed", Ending::Complete, "-"),
        ] {
            assert_eq!(envoy_of(reason, ending), flags, "{reason} {ending:?}");
        }
        assert_eq!(columns(&row)["ContainerAppName"], "Web");
        assert_eq!(columns(&row)["RequestDuration"], 12);
    }
}
