"""A user's own scaler on grpcio, with KEDA's protocol. What it answers is in the metadata that the rule sends it.

    specs    [[name, targetSize, targetSizeFloat], ...]
    values   {name: [[metricValue, metricValueFloat], ...]}
    active   true or false
    fail     METHOD, which then fails with what the scaler was told
    slow     METHOD, which then never answers
    stream   JSON list of booleans, sent at once; the stream stays open behind them

Input: such fields as JSON, one object a line, which from then on count instead of the metadata's; answered by `ok`.
Arguments: nothing, or the files of a certificate, its key and the authority of clients.
"""

import json
import sys
import threading
from concurrent import futures

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

KINDS = descriptor_pb2.FieldDescriptorProto
MESSAGES = {
    "ScaledObjectRef": [("name", KINDS.TYPE_STRING), ("namespace", KINDS.TYPE_STRING), ("scalerMetadata", "Entry")],
    "IsActiveResponse": [("result", KINDS.TYPE_BOOL)],
    "GetMetricSpecResponse": [("metricSpecs", "MetricSpec")],
    "MetricSpec": [("metricName", KINDS.TYPE_STRING), ("targetSize", KINDS.TYPE_INT64), ("targetSizeFloat", KINDS.TYPE_DOUBLE)],
    "GetMetricsRequest": [("scaledObjectRef", "!ScaledObjectRef"), ("metricName", KINDS.TYPE_STRING)],
    "GetMetricsResponse": [("metricValues", "MetricValue")],
    "MetricValue": [("metricName", KINDS.TYPE_STRING), ("metricValue", KINDS.TYPE_INT64), ("metricValueFloat", KINDS.TYPE_DOUBLE)],
    # a map is a repeated pair
    "Entry": [("key", KINDS.TYPE_STRING), ("value", KINDS.TYPE_STRING)],
}


def classes():
    file = descriptor_pb2.FileDescriptorProto(name="scaler.proto", package="externalscaler", syntax="proto3")
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, (field, kind) in enumerate(fields, 1):
            one = message.field.add(name=field, number=number, label=KINDS.LABEL_OPTIONAL)
            if isinstance(kind, str):
                one.type, one.type_name = KINDS.TYPE_MESSAGE, ".externalscaler." + kind.lstrip("!")
                if not kind.startswith("!"):
                    one.label = KINDS.LABEL_REPEATED
            else:
                one.type = kind
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName("externalscaler." + name)) for name in MESSAGES}


TYPES = classes()
ENDED = threading.Event()
OWN = {}


def told(method, ref, context):
    metadata = {entry.key: entry.value for entry in ref.scalerMetadata} | OWN
    if metadata.get("fail") == method:
        names = sorted(set(metadata) - {"specs", "values"})
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"{ref.namespace}/{ref.name} says {', '.join(names)}")
    if metadata.get("slow") == method:
        ENDED.wait(60)
    return metadata


def is_active(ref, context):
    return TYPES["IsActiveResponse"](result=told("IsActive", ref, context).get("active") == "true")


def stream_is_active(ref, context):
    for result in json.loads(told("StreamIsActive", ref, context).get("stream", "[]")):
        yield TYPES["IsActiveResponse"](result=result)
    while context.is_active() and not ENDED.wait(0.05):
        pass


def get_metric_spec(ref, context):
    specs = json.loads(told("GetMetricSpec", ref, context).get("specs", "[]"))
    make = lambda name, whole, part: TYPES["MetricSpec"](metricName=name, targetSize=whole, targetSizeFloat=part)
    return TYPES["GetMetricSpecResponse"](metricSpecs=[make(*spec) for spec in specs])


def get_metrics(request, context):
    metadata = told("GetMetrics", request.scaledObjectRef, context)
    name = request.metricName
    values = json.loads(metadata.get("values", "{}")).get(name, [])
    make = lambda whole, part: TYPES["MetricValue"](metricName=name, metricValue=whole, metricValueFloat=float(part))
    return TYPES["GetMetricsResponse"](metricValues=[make(*value) for value in values])


def main():
    server = grpc.server(futures.ThreadPoolExecutor(8))
    one, many = grpc.unary_unary_rpc_method_handler, grpc.unary_stream_rpc_method_handler
    methods = {
        "IsActive": (one, is_active, "ScaledObjectRef", "IsActiveResponse"),
        "StreamIsActive": (many, stream_is_active, "ScaledObjectRef", "IsActiveResponse"),
        "GetMetricSpec": (one, get_metric_spec, "ScaledObjectRef", "GetMetricSpecResponse"),
        "GetMetrics": (one, get_metrics, "GetMetricsRequest", "GetMetricsResponse"),
    }
    handlers = {
        name: kind(call, TYPES[question].FromString, TYPES[answer].SerializeToString)
        for name, (kind, call, question, answer) in methods.items()
    }
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("externalscaler.ExternalScaler", handlers)])
    if len(sys.argv) > 1:
        cert, key, clients = [open(path, "rb").read() for path in sys.argv[1:4]]
        credentials = grpc.ssl_server_credentials([(key, cert)], clients, require_client_auth=True)
        port = server.add_secure_port("127.0.0.1:0", credentials)
    else:
        port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print("ready", port, flush=True)
    for line in sys.stdin:
        OWN.update(json.loads(line))
        print("ok", flush=True)
    ENDED.set()
    server.stop(None)


if __name__ == "__main__":
    main()
