"""Commands for Container Apps as people write them down, verbatim, and how `az` itself spells each of them.

Placeholders are filled in (`fill`); lines are joined as their writers meant them (`joined`): with or without backslashes,
and comments between the lines are left out, which no shell does.
"""

import dataclasses
import json
import re

FILLED = {
    "<workspace-id>": "00000000-0000-0000-0000-0000000000ee",
    "<workspace-key>": "a2V5",
    "<sub-id>": "00000000-0000-0000-0000-0000000000aa",
    "<token>": "hf-token",
    "<key>": "api-key-value",
    "<RESOURCE_GROUP>": "MyRG",
    "<ENVIRONMENT_NAME>": "myenv",
    "<ENVIRONMENT_ID>": "/subscriptions/00000000-0000-0000-0000-0000000000aa/resourceGroups/MyRG/providers/Microsoft.App"
    "/managedEnvironments/myenv",
    "<USER_ASSIGNED_IDENTITY_ID>": "/subscriptions/00000000-0000-0000-0000-0000000000aa/resourceGroups/MyRG/providers"
    "/Microsoft.ManagedIdentity/userAssignedIdentities/myapp-identity",
    "<CONTAINER_IMAGE_LOCATION>": "cove.local/sample:latest",
    "<SERVICE_BUS_CONNECTION_STRING>": "Endpoint=sb://example/;SharedAccessKeyName=k;SharedAccessKey=s",
    "<AZURE_STORAGE_ACCOUNT_NAME>": "myaccount",
    "<external/internal>": "internal",
    "<ENVIRONMENT>": "myenv",
    "<USER_NAME>": "me",
    "<PASSWORD>": "pw",
    "<LOCATION>": "eastus",
    "<SESSION_POOL_NAME>": "my-session-pool",
    "<CONTAINER_TARGET_PORT>": "80",
}


@dataclasses.dataclass(frozen=True)
class Command:
    """A command: where it is from, its text, and what differs in `az`."""

    name: str
    text: str
    # the same in az's spelling; None: az takes it as it is
    az: str | None = None
    why: str = ""
    # what has to be there before, run with the same program
    before: str = ""
    # names of secrets that the text refers to and nowhere makes: refused as Azure refuses it, then run with them added
    secrets: str = ""
    values: dict = dataclasses.field(default_factory=dict)


GPU_PROFILE = "az containerapp env workload-profile add -n myenv -g MyRG --workload-profile-name {0} --workload-profile-type {1}"
A100 = ("gpu-nc24-a100", "Consumption-GPU-NC24-A100")
T4 = ("gpu-nc8as-t4", "Consumption-GPU-NC8as-T4")
GPU_WHY = "az knows no `--gpu-type`: a GPU is a workload profile"

# what `sessionpool create` sends
SESSION_POOL = json.dumps({
    "environmentId": "/subscriptions/00000000-0000-0000-0000-0000000000aa/resourceGroups/MyRG/providers/Microsoft.App"
    "/managedEnvironments/myenv",
    "containerType": "CustomContainer",
    "customContainerTemplate": {
        "containers": [{
            "name": "my-session-pool", "image": "myregistry.azurecr.io/my-container-image:1.0",
            "resources": {"cpu": 0.25, "memory": "0.5Gi"},
            "env": [{"name": "key1", "value": "value1"}, {"name": "key2", "value": "value2"}],
        }],
        "ingress": {"targetPort": 80},
        "registryCredentials": {"server": "myregistry.azurecr.io", "username": "me", "passwordSecretRef": "pw"},
    },
    "secrets": [{"name": "pw", "value": "pw"}],
    "scaleConfiguration": {"maxConcurrentSessions": 10, "readySessionInstances": 5},
    "dynamicPoolConfiguration": {"lifecycleConfiguration": {"lifecycleType": "Timed", "cooldownPeriodInSeconds": 300}},
    "sessionNetworkConfiguration": {"status": "EgressDisabled"},
})  # fmt: skip

COMMANDS = [
    Command("environment", """
az containerapp env create
--name myenv
--resource-group MyRG
--location eastus
--logs-workspace-id <workspace-id>
--logs-workspace-key <workspace-key>
"""),
    Command("app with a GPU", """
az containerapp create
--name myapp-gpu
--resource-group MyRG
--environment myenv
--image myregistry.azurecr.io/ai-model:latest
--cpu 4
--memory 8Gi
--gpu-type nvidia-a100
--gpu-count 1
--min-replicas 0
--max-replicas 10
--ingress external
--target-port 8080
""", az="""
az containerapp create --name myapp-gpu --resource-group MyRG --environment myenv
--image myregistry.azurecr.io/ai-model:latest --cpu 4 --memory 8Gi -w gpu-nc24-a100
--min-replicas 0 --max-replicas 10 --ingress external --target-port 8080
""", why=GPU_WHY, before=GPU_PROFILE.format(*A100)),
    Command("production app with a GPU", r"""
az containerapp create \
  --name myapp-gpu-prod \
  --resource-group MyRG \
  --environment myenv \
  \
  # Container configuration
  --image myregistry.azurecr.io/ai-model:latest \
  --registry-server myregistry.azurecr.io \
  --registry-identity system \
  \
  # Resources
  --cpu 4 \
  --memory 8Gi \
  --gpu-type nvidia-a100 \
  --gpu-count 1 \
  \
  # Scaling
  --min-replicas 0 \
  --max-replicas 20 \
  --scale-rule-name http-scaling \
  --scale-rule-type http \
  --scale-rule-http-concurrency 10 \
  \
  # Networking
  --ingress external \
  --target-port 8080 \
  --transport http2 \
  --exposed-port 8080 \
  \
  # Security
  --registry-identity system \
  --env-vars "AZURE_CLIENT_ID=secretref:client-id" \
  \
  # Monitoring
  --dapr-app-id myapp \
  --dapr-app-port 8080 \
  --dapr-app-protocol http \
  --enable-dapr \
  \
  # Identity
  --system-assigned
""", az="""
az containerapp create --name myapp-gpu-prod --resource-group MyRG --environment myenv
--image myregistry.azurecr.io/ai-model:latest --registry-server myregistry.azurecr.io --registry-identity system
--cpu 4 --memory 8Gi -w gpu-nc24-a100 --min-replicas 0 --max-replicas 20
--scale-rule-name http-scaling --scale-rule-type http --scale-rule-http-concurrency 10
--ingress external --target-port 8080 --transport http2 --exposed-port 8080
--env-vars "AZURE_CLIENT_ID=secretref:client-id" PORT=8080
--dapr-app-id myapp --dapr-app-port 8080 --dapr-app-protocol http --enable-dapr --system-assigned
""", why=GPU_WHY + "; for a system identity it runs its quickstart image first, which has to listen on the same port",
            secrets="client-id"),
    Command("environment with zones and profiles", r"""
az containerapp env create \
  --name myenv-prod \
  --resource-group MyRG \
  --location eastus \
  --logs-workspace-id <workspace-id> \
  --logs-workspace-key <workspace-key> \
  --zone-redundant true \
  --enable-workload-profiles true
""", az="""
az containerapp env create --name myenv-prod --resource-group MyRG --location eastus
--logs-workspace-id <workspace-id> --logs-workspace-key <workspace-key> --enable-workload-profiles true
""", why="az's `--zone-redundant` takes no value and wants a subnet"),
    Command("environment for GPUs", """
az containerapp env create
--name myenv-gpu
--resource-group MyRG
--location eastus
--enable-workload-profiles true
""", az="""
az containerapp env create --name myenv-gpu --resource-group MyRG --location eastus
--enable-workload-profiles true --logs-destination none
""", why="without a destination of the logs az makes a workspace of its own"),
    Command("GPU workload profile", """
az containerapp env workload-profile add
--name myenv-gpu
--resource-group MyRG
--workload-profile-name gpu-profile
--workload-profile-type GPU-A100
--min-nodes 0
--max-nodes 10
"""),
    Command("app on a dedicated GPU profile", """
az containerapp create
--name myapp-dedicated-gpu
--resource-group MyRG
--environment myenv-gpu
--workload-profile-name gpu-profile
--image myregistry.azurecr.io/training-job:latest
--cpu 8
--memory 16Gi
--min-replicas 1
--max-replicas 5
"""),
    Command("prometheus rule", r"""
az containerapp create \
  --name myapp-gpu-prometheus \
  --resource-group MyRG \
  --environment myenv \
  --image myregistry.azurecr.io/ai-model:latest \
  --cpu 4 \
  --memory 8Gi \
  --gpu-type nvidia-a100 \
  --gpu-count 1 \
  --min-replicas 0 \
  --max-replicas 10 \
  --scale-rule-name gpu-utilization \
  --scale-rule-type custom \
  --scale-rule-custom-type prometheus \
  --scale-rule-metadata \
    serverAddress=http://prometheus.monitoring.svc.cluster.local:9090 \
    metricName=gpu_utilization \
    threshold=80 \
    query="avg(nvidia_gpu_utilization{app='myapp'})"
""", az="""
az containerapp create --name myapp-gpu-prometheus --resource-group MyRG --environment myenv
--image myregistry.azurecr.io/ai-model:latest --cpu 4 --memory 8Gi -w gpu-nc24-a100
--min-replicas 0 --max-replicas 10 --scale-rule-name gpu-utilization --scale-rule-type prometheus
--scale-rule-metadata serverAddress=http://prometheus.monitoring.svc.cluster.local:9090
metricName=gpu_utilization threshold=80 query="avg(nvidia_gpu_utilization{app='myapp'})"
""", why="az's `--scale-rule-type` is the type of the scaler itself"),
    Command("service bus rule", r"""
az containerapp create \
  --name myapp-queue-processor \
  --resource-group MyRG \
  --environment myenv \
  --image myregistry.azurecr.io/batch-processor:latest \
  --cpu 4 \
  --memory 8Gi \
  --gpu-type nvidia-t4 \
  --gpu-count 1 \
  --min-replicas 0 \
  --max-replicas 50 \
  --scale-rule-name queue-scaling \
  --scale-rule-type azure-servicebus \
  --scale-rule-metadata \
    queueName=ai-jobs \
    namespace=myservicebus \
    messageCount=5 \
  --scale-rule-auth connection=servicebus-connection
""", az="""
az containerapp create --name myapp-queue-processor --resource-group MyRG --environment myenv
--image myregistry.azurecr.io/batch-processor:latest --cpu 4 --memory 8Gi -w gpu-nc8as-t4
--min-replicas 0 --max-replicas 50 --scale-rule-name queue-scaling --scale-rule-type azure-servicebus
--scale-rule-metadata queueName=ai-jobs namespace=myservicebus messageCount=5
--scale-rule-auth connection=servicebus-connection
""", why=GPU_WHY, before=GPU_PROFILE.format(*T4), secrets="servicebus-connection"),
    Command("app with Dapr", r"""
az containerapp create \
  --name myapp-dapr \
  --resource-group MyRG \
  --environment myenv \
  --image myregistry.azurecr.io/myapp:latest \
  --enable-dapr \
  --dapr-app-id myapp \
  --dapr-app-port 8080 \
  --dapr-app-protocol http \
  --dapr-http-max-request-size 4 \
  --dapr-http-read-buffer-size 4 \
  --dapr-log-level info \
  --dapr-enable-api-logging true
""", az="""
az containerapp create --name myapp-dapr --resource-group MyRG --environment myenv
--image myregistry.azurecr.io/myapp:latest --enable-dapr --dapr-app-id myapp --dapr-app-port 8080
--dapr-app-protocol http --dapr-http-max-request-size 4 --dapr-http-read-buffer-size 4
--dapr-log-level info --dapr-enable-api-logging
""", why="az's `--dapr-enable-api-logging` takes no value"),
    Command("Dapr component", """
az containerapp env dapr-component set
--name myenv
--resource-group MyRG
--dapr-component-name statestore
--yaml component.yaml
""", az="""
az containerapp env dapr-component set --name myenv --resource-group MyRG
--dapr-component-name statestore --yaml component-azure.yaml
""", why="az reads Azure's form of the file only, not Kubernetes'"),
    Command("model server", """
az containerapp create
--name llama-inference
--resource-group MyRG
--environment myenv
--image vllm/vllm-openai:latest
--cpu 8
--memory 32Gi
--gpu-type nvidia-a100
--gpu-count 1
--min-replicas 1
--max-replicas 5
--target-port 8080
--ingress external
--env-vars
MODEL_NAME="meta-llama/Llama-3.1-8B-Instruct"
GPU_MEMORY_UTILIZATION="0.9"
HF_TOKEN=secretref:huggingface-token
""", az="""
az containerapp create --name llama-inference --resource-group MyRG --environment myenv
--image vllm/vllm-openai:latest --cpu 8 --memory 32Gi -w gpu-nc24-a100 --min-replicas 1 --max-replicas 5
--target-port 8080 --ingress external --env-vars MODEL_NAME="meta-llama/Llama-3.1-8B-Instruct"
GPU_MEMORY_UTILIZATION="0.9" HF_TOKEN=secretref:huggingface-token
""", why=GPU_WHY, secrets="huggingface-token"),
    Command("image generator", r"""
az containerapp create \
  --name stable-diffusion \
  --resource-group MyRG \
  --environment myenv \
  --image myregistry.azurecr.io/stable-diffusion:latest \
  --cpu 4 \
  --memory 16Gi \
  --gpu-type nvidia-a100 \
  --gpu-count 1 \
  --min-replicas 0 \
  --max-replicas 10 \
  --target-port 7860 \
  --ingress external \
  --scale-rule-name http-scaling \
  --scale-rule-type http \
  --scale-rule-http-concurrency 1
""", az="""
az containerapp create --name stable-diffusion --resource-group MyRG --environment myenv
--image myregistry.azurecr.io/stable-diffusion:latest --cpu 4 --memory 16Gi -w gpu-nc24-a100
--min-replicas 0 --max-replicas 10 --target-port 7860 --ingress external
--scale-rule-name http-scaling --scale-rule-type http --scale-rule-http-concurrency 1
""", why=GPU_WHY),
    Command("training job", r"""
az containerapp job create \
  --name batch-training-job \
  --resource-group MyRG \
  --environment myenv \
  --trigger-type Manual \
  --image myregistry.azurecr.io/training:latest \
  --cpu 8 \
  --memory 32Gi \
  --gpu-type nvidia-a100 \
  --gpu-count 2 \
  --parallelism 1 \
  --replica-timeout 7200 \
  --replica-retry-limit 3 \
  --env-vars \
    DATASET_URL="https://mystorage.blob.core.windows.net/datasets/train.csv" \
    MODEL_OUTPUT="https://mystorage.blob.core.windows.net/models/" \
    EPOCHS="100"
""", az="""
az containerapp job create --name batch-training-job --resource-group MyRG --environment myenv
--trigger-type Manual --image myregistry.azurecr.io/training:latest --cpu 8 --memory 32Gi -w gpu-nc48-a100
--parallelism 1 --replica-timeout 7200 --replica-retry-limit 3 --env-vars
DATASET_URL="https://mystorage.blob.core.windows.net/datasets/train.csv"
MODEL_OUTPUT="https://mystorage.blob.core.windows.net/models/" EPOCHS="100"
""", why=GPU_WHY, before=GPU_PROFILE.format("gpu-nc48-a100", "NC48-A100") + " --min-nodes 0 --max-nodes 1"),
    Command("training job's start", """
az containerapp job start
--name batch-training-job
--resource-group MyRG
"""),
    Command("monitored app", r"""
az containerapp create \
  --name myapp-monitored \
  --resource-group MyRG \
  --environment myenv \
  --image myregistry.azurecr.io/myapp:latest \
  --env-vars \
    APPLICATIONINSIGHTS_CONNECTION_STRING=secretref:appinsights-connection
""", secrets="appinsights-connection"),
    Command("app with an identity", """
az containerapp create
--name myapp-identity
--resource-group MyRG
--environment myenv
--system-assigned
--image myregistry.azurecr.io/myapp:latest
"""),
    Command("role for the identity", """
IDENTITY_ID=$(az containerapp show -g MyRG -n myapp-identity --query identity.principalId -o tsv)
az role assignment create
--assignee $IDENTITY_ID
--role "Key Vault Secrets User"
--scope /subscriptions/<sub-id>/resourceGroups/MyRG/providers/Microsoft.KeyVault/vaults/mykeyvault
"""),
    Command("user-assigned identity", """
az identity create --name myapp-identity --resource-group MyRG
IDENTITY_RESOURCE_ID=$(az identity show -g MyRG -n myapp-identity --query id -o tsv)
az containerapp create
--name myapp-user-identity
--resource-group MyRG
--environment myenv
--user-assigned $IDENTITY_RESOURCE_ID
--image myregistry.azurecr.io/myapp:latest
"""),
    Command("secrets", """
az containerapp secret set
--name myapp-gpu
--resource-group MyRG
--secrets
huggingface-token="<token>"
api-key="<key>"
"""),
    Command("secrets in variables", """
az containerapp update
--name myapp-gpu
--resource-group MyRG
--set-env-vars
HF_TOKEN=secretref:huggingface-token
API_KEY=secretref:api-key
"""),
    Command("scale to zero", r"""
az containerapp create \
  --name myapp-scale-zero \
  --resource-group MyRG \
  --environment myenv \
  --image myregistry.azurecr.io/myapp:latest \
  --min-replicas 0 \
  --max-replicas 10 \
  --scale-rule-name http-scaling \
  --scale-rule-type http \
  --scale-rule-http-concurrency 10
"""),
    Command("revisions", r"""
az containerapp revision list \
  --name myapp-gpu \
  --resource-group MyRG \
  --output table
"""),
    Command("revision", r"""
az containerapp revision show \
  --name <revision-name> \
  --app myapp-gpu \
  --resource-group MyRG
""", az="""
az containerapp revision show --revision <revision-name> --name myapp-gpu --resource-group MyRG
""", why="az's `--name` is the app and `--revision` the revision"),
    Command("restart", r"""
az containerapp update \
  --name myapp-gpu \
  --resource-group MyRG \
  --force-restart
""", az="""
az containerapp revision restart --revision <revision-name> --name myapp-gpu --resource-group MyRG
""", why="az has no `--force-restart`"),
    Command("http rule", r"""
az containerapp create \
--name <CONTAINER_APP_NAME> \
--resource-group <RESOURCE_GROUP> \
--environment <ENVIRONMENT_NAME> \
--image <CONTAINER_IMAGE_LOCATION>
--min-replicas 0 \
--max-replicas 5 \
--scale-rule-name azure-http-rule \
--scale-rule-type http \
--scale-rule-http-concurrency 100
""", values={"<CONTAINER_APP_NAME>": "http-rule"}),
    Command("tcp rule", r"""
az containerapp create \
  --name <CONTAINER_APP_NAME> \
  --resource-group <RESOURCE_GROUP> \
  --environment <ENVIRONMENT_NAME> \
  --image <CONTAINER_IMAGE_LOCATION>
  --min-replicas 0 \
  --max-replicas 5 \
  --transport tcp \
  --ingress <external/internal> \
  --target-port <CONTAINER_TARGET_PORT> \
  --scale-rule-name azure-tcp-rule \
  --scale-rule-type tcp \
  --scale-rule-tcp-concurrency 100
""", values={
        "<CONTAINER_APP_NAME>": "tcp-rule",
        "<CONTAINER_IMAGE_LOCATION>": "myregistry.azurecr.io/myapp:latest",
        "<CONTAINER_TARGET_PORT>": "8080",
    }),
    Command("service bus rule with a secret", r"""
    az containerapp create \
      --name <CONTAINER_APP_NAME> \
      --resource-group <RESOURCE_GROUP> \
      --environment <ENVIRONMENT_NAME> \
      --image <CONTAINER_IMAGE_LOCATION>
      --min-replicas 0 \
      --max-replicas 5 \
      --secrets "connection-string-secret=<SERVICE_BUS_CONNECTION_STRING>" \
      --scale-rule-name azure-servicebus-queue-rule \
      --scale-rule-type azure-servicebus \
      --scale-rule-metadata "queueName=my-queue" \
                            "namespace=service-bus-namespace" \
                            "messageCount=5" \
      --scale-rule-auth "connection=connection-string-secret"
""", values={"<CONTAINER_APP_NAME>": "bus-rule"}),
    Command("queue rule with an identity", r"""
az containerapp create \
  --resource-group <RESOURCE_GROUP> \
  --name <APP_NAME> \
  --environment <ENVIRONMENT_ID> \
  --user-assigned <USER_ASSIGNED_IDENTITY_ID> \
  --scale-rule-name azure-queue \
  --scale-rule-type azure-queue \
  --scale-rule-metadata "accountName=<AZURE_STORAGE_ACCOUNT_NAME>" "queueName=queue1" "queueLength=1" \
  --scale-rule-identity <USER_ASSIGNED_IDENTITY_ID>
""", az="""
az containerapp create --resource-group <RESOURCE_GROUP> --name <APP_NAME> --environment <ENVIRONMENT_ID>
--user-assigned <USER_ASSIGNED_IDENTITY_ID> --scale-rule-name azure-queue --scale-rule-type azure-queue
--scale-rule-metadata "accountName=<AZURE_STORAGE_ACCOUNT_NAME>" "queueName=queue1" "queueLength=1"
""", why="core az 2.91 has no `--scale-rule-identity`; the extension has it", values={"<APP_NAME>": "queue-identity"}),
    Command("session pool", r"""
az containerapp sessionpool create \
    --name my-session-pool \
    --resource-group <RESOURCE_GROUP> \
    --environment <ENVIRONMENT> \
    --registry-server myregistry.azurecr.io \
    --registry-username <USER_NAME> \
    --registry-password <PASSWORD> \
    --container-type CustomContainer \
    --image myregistry.azurecr.io/my-container-image:1.0 \
    --cpu 0.25 --memory 0.5Gi \
    --target-port 80 \
    --cooldown-period 300 \
    --network-status EgressDisabled \
    --max-sessions 10 \
    --ready-sessions 5 \
    --env-vars "key1=value1" "key2=value2" \
    --location <LOCATION>
""", az="""
az resource create --name my-session-pool --resource-group <RESOURCE_GROUP> --location <LOCATION>
--resource-type Microsoft.App/sessionPools --api-version 2025-07-01 --properties '"""
        + SESSION_POOL + "'", why="core az has no `sessionpool`; the extension has it"),
    Command("session pool's endpoint", r"""
az containerapp sessionpool show \
    --name <SESSION_POOL_NAME> \
    --resource-group <RESOURCE_GROUP> \
    --query "properties.poolManagementEndpoint" \
    --output tsv
""", az="""
az resource show --name <SESSION_POOL_NAME> --resource-group <RESOURCE_GROUP>
--resource-type Microsoft.App/sessionPools --api-version 2025-07-01
--query "properties.poolManagementEndpoint" --output tsv
""", why="core az has no `sessionpool`; the extension has it"),
]

# the file refers to a secret that it does not hold: it needs the store that does
FILES = {
    "component.yaml": """apiVersion: dapr.io/v1alpha1
kind: Component
metadata:
  name: statestore
spec:
  type: state.azure.cosmosdb
  version: v1
  metadata:
    - name: url
      value: "https://mycosmosdb.documents.azure.com:443/"
    - name: masterKey
      secretRef: cosmosdb-key
    - name: database
      value: "mydb"
    - name: collection
      value: "state"
auth:
  secretStore: vault
""",
    "component-azure.yaml": """componentType: state.azure.cosmosdb
version: v1
metadata:
  - name: url
    value: "https://mycosmosdb.documents.azure.com:443/"
  - name: masterKey
    secretRef: cosmosdb-key
  - name: database
    value: "mydb"
  - name: collection
    value: "state"
secretStoreComponent: vault
""",
}


def fill(text, values):
    """The text with its placeholders filled in."""
    for placeholder, value in {**FILLED, **values}.items():
        text = text.replace(placeholder, value)
    left = re.findall(r"<[A-Za-z/_-]+>", text)
    assert not left, f"not filled in: {left}"
    return text


def joined(text):
    """One line per command: a line that begins neither `az` nor an assignment goes on with the one before."""
    commands = []
    for line in text.splitlines():
        line = line.strip().removesuffix("\\").strip()
        if not line or line.startswith("#"):
            continue
        if re.match(r"(az |[A-Z_]+=\$\()", line):
            commands.append(line)
        else:
            commands[-1] += f" {line}"
    return "\n".join(commands)
