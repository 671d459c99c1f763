{{/* What all pods of Penstock's programs share. */}}
{{- define "penstock.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "penstock.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{- define "penstock.imagePull" -}}
image: {{ include "penstock.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- end }}

{{- define "penstock.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}

{{/* Where and beside whom a server's pods run. Takes (dict "root" $ "component" … "values" …); "revision" is the label by which the
     pods of a StatefulSet know their revision. */}}
{{- define "penstock.placement" -}}
topologySpreadConstraints:
  {{- if .values.topologySpreadConstraints }}
  {{- toYaml .values.topologySpreadConstraints | nindent 2 }}
  {{- else }}
  {{- range list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
  - maxSkew: 1
    topologyKey: {{ . }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "penstock.selector" $ | nindent 8 }}
    matchLabelKeys: [{{ $.revision | default "pod-template-hash" }}]
  {{- end }}
  {{- end }}
{{- with .values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end }}

{{/* Alive from the first moment; ready when all listeners serve and no drain has begun. Etcd or Redis being away ends no pod. */}}
{{- define "penstock.probes" -}}
startupProbe:
  httpGet: { path: /livez, port: admin }
  periodSeconds: 2
  failureThreshold: 30
livenessProbe:
  httpGet: { path: /livez, port: admin }
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet: { path: /readyz, port: admin }
  periodSeconds: 2
  timeoutSeconds: 2
  failureThreshold: 2
{{- end }}

{{- define "penstock.grace" -}}
{{ add .Values.drain.delaySeconds .Values.drain.timeoutSeconds 15 }}
{{- end }}

{{/* Settings that gateways and routers share. */}}
{{- define "penstock.commonEnv" -}}
- name: PENSTOCK_NODE_ID
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
{{ include "penstock.variable" (dict "variable" "PENSTOCK_ETCD" "from" (include "penstock.secret.etcd" .)) }}
- name: PENSTOCK_CLUSTER_SECRET_FILE
  value: /run/penstock/cluster-secret
- name: PENSTOCK_DRAIN_DELAY
  value: {{ printf "%ds" (int .Values.drain.delaySeconds) }}
- name: PENSTOCK_DRAIN_TIMEOUT
  value: {{ printf "%ds" (int .Values.drain.timeoutSeconds) }}
{{ include "penstock.telemetryEnv" . }}
{{- end }}

{{/* What a server tells about itself, and where. */}}
{{- define "penstock.telemetryEnv" -}}
- name: PENSTOCK_LOG
  value: {{ .Values.log.filter | quote }}
- name: PENSTOCK_LOG_FORMAT
  value: {{ .Values.log.format }}
{{- with .Values.tracing.otlpEndpoint }}
- name: PENSTOCK_OTLP_ENDPOINT
  value: {{ . | quote }}
- name: PENSTOCK_TRACE_EVERY
  value: {{ $.Values.tracing.every | int | quote }}
{{- end }}
{{- end }}

{{- define "penstock.anyAddress" -}}
{{ ternary "[::]" "0.0.0.0" .Values.ipv6 }}
{{- end }}

{{/* A run of penstockctl that makes a tenant and its users, as containers that run one after the other: the image has no shell.
     Takes (dict "root" $ "tenant" … "user" …). Files: /run/penstock/admin-password and /run/penstock/password. */}}
{{- define "penstock.makeTenant" -}}
{{- $steps := list
    (list "tenant" (list "tenant" "create" .tenant "--if-not-exists"))
    (list "device" (list "user" "add" (printf "%s/device" .tenant) "--role" "device" "--new-password-file" "/run/penstock/password" "--if-not-exists"))
    (list "app" (list "user" "add" (printf "%s/app" .tenant) "--role" "service" "--new-password-file" "/run/penstock/password" "--if-not-exists"))
    (list "device-password" (list "user" "set-password" (printf "%s/device" .tenant) "--new-password-file" "/run/penstock/password"))
    (list "app-password" (list "user" "set-password" (printf "%s/app" .tenant) "--new-password-file" "/run/penstock/password")) -}}
{{- range $steps }}
- name: {{ index . 0 }}
  {{- include "penstock.imagePull" $.root | nindent 2 }}
  command: [/usr/bin/penstockctl]
  args: {{ concat (list "--server" (include "penstock.doors" $.root) "--user" "system/admin" "--password-file" "/run/penstock/admin-password") (index . 1) | toJson }}
  {{- include "penstock.smallTool" $.root | nindent 2 }}
{{- end }}
{{- end }}

{{/* Resources, mounts and rights of a tool that runs for a moment. */}}
{{- define "penstock.smallTool" -}}
resources:
  requests: { cpu: 50m, memory: 32Mi }
  limits: { memory: 128Mi }
securityContext:
  {{- include "penstock.containerSecurity" . | nindent 2 }}
volumeMounts:
  - { name: secrets, mountPath: /run/penstock, readOnly: true }
{{- end }}

{{/* Listeners of the Service for devices: name, container port, port of the Service, the setting's variable. As a JSON list. */}}
{{- define "penstock.listeners" -}}
{{- $service := .Values.gateway.service -}}
{{- $list := list -}}
{{- if .Values.gateway.plain }}{{ $list = append $list (list "mqtt" 1883 $service.port "PENSTOCK_MQTT_LISTEN") }}{{ end -}}
{{- if .Values.gateway.tls.secret }}{{ $list = append $list (list "mqtts" 8883 $service.tlsPort "PENSTOCK_MQTTS_LISTEN") }}{{ end -}}
{{- if .Values.gateway.webSocket }}{{ $list = append $list (list "ws" 8083 $service.webSocketPort "PENSTOCK_WS_LISTEN") }}{{ end -}}
{{- if and .Values.gateway.webSocket .Values.gateway.tls.secret }}{{ $list = append $list (list "wss" 8084 $service.webSocketTlsPort "PENSTOCK_WSS_LISTEN") }}{{ end -}}
{{- if not $list }}{{ fail "gateways would listen nowhere: gateway.plain, gateway.tls.secret and gateway.webSocket are all off" }}{{ end -}}
{{ toJson $list }}
{{- end }}
