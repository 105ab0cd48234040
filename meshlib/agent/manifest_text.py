"""The agent's manifests as text: comments are part of it, for whoever reviews what runs with which rights. Pure."""

from __future__ import annotations

from collections.abc import Sequence

_TEXT = """\
# meshlib's node agent. Every right and every mount says what it is for. For kustomize: a resource like any other.
apiVersion: v1
kind: ServiceAccount
metadata: {{name: meshlib-agent, namespace: {namespace}}}
---
# Reads only. Cluster-wide, as a node serves the Services of all namespaces; RBAC cannot restrict Nodes to the own one.
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {{name: meshlib-agent}}
rules:
- {{apiGroups: [""], resources: [services, nodes], verbs: [list, watch]}}
- {{apiGroups: [discovery.k8s.io], resources: [endpointslices], verbs: [list, watch]}}
# Where ClusterIPs come from; only newer API servers have them.
- {{apiGroups: [networking.k8s.io], resources: [servicecidrs], verbs: [list, watch]}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {{name: meshlib-agent}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: meshlib-agent}}
subjects:
- {{kind: ServiceAccount, name: meshlib-agent, namespace: {namespace}}}
---
apiVersion: v1
kind: ConfigMap
metadata: {{name: meshlib-agent, namespace: {namespace}}}
data:
  agent.toml: |
{settings}---
apiVersion: apps/v1
kind: DaemonSet
metadata:
  name: meshlib-agent
  namespace: {namespace}
  labels: {{app.kubernetes.io/name: meshlib-agent}}
spec:
  selector: {{matchLabels: {{app.kubernetes.io/name: meshlib-agent}}}}
  updateStrategy:
    type: RollingUpdate
    # One node at a time. The rules stay while an agent is replaced; two on one node would refuse each other.
    rollingUpdate: {{maxUnavailable: 1, maxSurge: 0}}
  template:
    metadata: {{labels: {{app.kubernetes.io/name: meshlib-agent}}}}
    spec:
      serviceAccountName: meshlib-agent
      # The rules are the node's, so the agent is in the node's network namespace.
      hostNetwork: true
      # The node's own resolver: the cluster's is a Service, and Services are what we make.
      dnsPolicy: Default
      # Without the agent the node's Services grow stale: it is evicted last and scheduled first.
      priorityClassName: system-node-critical
      tolerations: [{{operator: Exists}}]
      nodeSelector: {{kubernetes.io/os: linux}}
      # Nothing is undone at the end; the rules stay.
      terminationGracePeriodSeconds: 10
      initContainers:
      - name: prepare
        # Loads modules and sets kernel settings, notes the previous values in the ledger, and ends.
        image: {image}
        args: [agent, prepare]
        env: [{{name: MESHLIB_AGENT_CONFIG, value: /etc/meshlib/agent.toml}}]
        # Writing /proc/sys and loading modules: nothing less is enough. It reads no data of the cluster.
        securityContext: {{privileged: true}}
        volumeMounts:
        - {{name: settings, mountPath: /etc/meshlib, readOnly: true}}
        # The modules of the node's kernel, for modprobe.
        - {{name: modules, mountPath: /lib/modules, readOnly: true}}
        - {{name: state, mountPath: /run/meshlib-agent}}
      containers:
      - name: agent
        image: {image}
        args: [agent, run, --log, json]
        env:
        - {{name: MESHLIB_AGENT_CONFIG, value: /etc/meshlib/agent.toml}}
        - name: NODE_NAME
          valueFrom: {{fieldRef: {{fieldPath: spec.nodeName}}}}
        securityContext:
          # NET_ADMIN programs nf_tables, IPVS, routes and connection tracking. Only the programmer's process keeps it;
          # the one that reads the cluster's data gives it up before it reads anything.
          capabilities: {{drop: [ALL], add: [NET_ADMIN]}}
          allowPrivilegeEscalation: false
          readOnlyRootFilesystem: true
          # Another user than root would not be given the capability.
          runAsUser: 0
          seccompProfile: {{type: RuntimeDefault}}
        # Neither depends on the API server: while it is away the rules go on working, and a restart would not help.
        livenessProbe:
          httpGet: {{path: /livez, port: {port}}}
          periodSeconds: 10
          failureThreshold: 6
        readinessProbe:
          httpGet: {{path: /readyz, port: {port}}}
          periodSeconds: 5
        resources:
          requests: {{cpu: 50m, memory: 128Mi}}
          limits: {{memory: 512Mi}}
        volumeMounts:
        - {{name: settings, mountPath: /etc/meshlib, readOnly: true}}
        # The ledger of what is ours, and the control socket. Must outlive the pod, and not the boot.
        - {{name: state, mountPath: /run/meshlib-agent}}
      volumes:
      - name: settings
        configMap: {{name: meshlib-agent}}
      - name: modules
        hostPath: {{path: /lib/modules, type: Directory}}
      - name: state
        hostPath: {{path: /run/meshlib-agent, type: DirectoryOrCreate}}
"""


def manifests(namespace: str, image: str, settings: Sequence[tuple[str, str]], port: int) -> str:
    """``settings``: keys with their values as TOML; ``port``: that of the probes. Names are checked by the caller."""
    lines = "".join(f"    {key} = {value}\n" for key, value in settings)
    none = "    # every setting has its default; `meshlib agent manifests --set KEY=VALUE` adds one\n"
    return _TEXT.format(namespace=namespace, image=image, settings=lines or none, port=port)


def to_toml(value: object) -> str:
    """A setting's value as TOML. Raises TypeError for what no setting has."""
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case str():
            escaped = value.replace("\\", "\\\\").replace('"', '\\"')
            return f'"{escaped}"'
        case tuple():
            return "[" + ", ".join(map(to_toml, value)) + "]"
        case _:
            raise TypeError(f"{type(value).__name__} is no setting's type")
