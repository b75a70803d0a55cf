// my-queue-app: az deployment group create -g MyRG -f seed-custom-rule.bicep
param appName string = 'my-queue-app'
param environmentName string = 'my-environment'
param image string = 'mcr.microsoft.com/k8se/quickstart:latest'
param location string = resourceGroup().location
@secure()
param connectionString string

resource environment 'Microsoft.App/managedEnvironments@2025-02-02-preview' = {
  name: environmentName
  location: location
  properties: {}
}

resource app 'Microsoft.App/containerApps@2025-02-02-preview' = {
  name: appName
  location: location
  properties: {
    environmentId: environment.id
    configuration: {
      secrets: [
        {
          name: 'connection-string-secret'
          value: connectionString
        }
      ]
    }
    template: {
      containers: [
        {
          name: 'main'
          image: image
          resources: {
            cpu: json('0.25')
            memory: '0.5Gi'
          }
        }
      ]
      scale: {
        minReplicas: 0
        maxReplicas: 5
        rules: [
          {
            name: 'azure-servicebus-queue-rule'
            custom: {
              type: 'azure-servicebus'
              metadata: {
                queueName: 'my-queue'
                namespace: 'service-bus-namespace'
                messageCount: '5'
              }
              auth: [
                {
                  secretRef: 'connection-string-secret'
                  triggerParameter: 'connection'
                }
              ]
            }
          }
        ]
      }
    }
  }
}

output id string = app.id
