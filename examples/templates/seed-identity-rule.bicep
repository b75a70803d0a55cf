// my-storage-app: az deployment group create -g MyRG -f seed-identity-rule.bicep
param appName string = 'my-storage-app'
param environmentName string = 'my-environment'
param image string = 'mcr.microsoft.com/k8se/quickstart:latest'
param location string = resourceGroup().location
param accountName string = 'myaccount'
param queueName string = 'myqueue'

resource environment 'Microsoft.App/managedEnvironments@2025-02-02-preview' = {
  name: environmentName
  location: location
  properties: {}
}

resource app 'Microsoft.App/containerApps@2025-02-02-preview' = {
  name: appName
  location: location
  identity: {
    type: 'SystemAssigned'
  }
  properties: {
    environmentId: environment.id
    configuration: {
      activeRevisionsMode: 'Single'
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
        maxReplicas: 4
        rules: [
          {
            name: 'azure-queue'
            custom: {
              type: 'azure-queue'
              metadata: {
                accountName: accountName
                queueName: queueName
                queueLength: '1'
              }
              identity: 'system'
            }
          }
        ]
      }
    }
  }
}

output id string = app.id
