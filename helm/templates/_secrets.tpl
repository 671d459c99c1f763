{{/* Which Secret and key hold what. Each gives "name key" of one secret; take it apart with splitList " ". */}}
{{- define "penstock.secret.etcd" -}}
{{- if .Values.etcd.existingSecret }}{{ .Values.etcd.existingSecret }} {{ .Values.etcd.existingSecretKey }}{{ else }}{{ include "penstock.fullname" . }} etcd-url{{ end }}
{{- end }}

{{- define "penstock.secret.redis" -}}
{{- if .Values.redis.existingSecret }}{{ .Values.redis.existingSecret }} {{ .Values.redis.existingSecretKey }}{{ else }}{{ include "penstock.fullname" . }} redis-url{{ end }}
{{- end }}

{{- define "penstock.secret.cluster" -}}
{{- if .Values.clusterSecret.existingSecret }}{{ .Values.clusterSecret.existingSecret }} {{ .Values.clusterSecret.existingSecretKey }}{{ else }}{{ include "penstock.fullname" . }} cluster-secret{{ end }}
{{- end }}

{{- define "penstock.secret.admin" -}}
{{- if .Values.admin.existingSecret }}{{ .Values.admin.existingSecret }} {{ .Values.admin.existingSecretKey }}{{ else }}{{ include "penstock.fullname" . }} admin-password{{ end }}
{{- end }}

{{/* The URL of etcd or Redis: as given, or the one for trying out. Takes (dict "root" $ "what" "etcd"). */}}
{{- define "penstock.url" -}}
{{- $given := (index .root.Values .what).url -}}
{{- if $given }}{{ $given }}
{{- else if and .root.Values.dev.enabled (eq .what "etcd") }}http://{{ include "penstock.fullname" .root }}-etcd:2379
{{- else if .root.Values.dev.enabled }}redis://{{ include "penstock.fullname" .root }}-redis:6379
{{- else }}{{ required (printf "give %s.url or %s.existingSecret; or, for trying it out, dev.enabled=true" .what .what) $given }}
{{- end }}
{{- end }}

{{/* A secret as given, else as it is in the cluster, else a new one. Takes (dict "root" $ "given" … "key" …  "name" …). */}}
{{- define "penstock.kept" -}}
{{- $there := lookup "v1" "Secret" .root.Release.Namespace .name -}}
{{- if .given }}{{ .given | b64enc }}
{{- else if and $there (hasKey (default dict $there.data) .key) }}{{ index $there.data .key }}
{{- else }}{{ randAlphaNum 40 | b64enc }}
{{- end }}
{{- end }}

{{/* An environment variable out of a secret. Takes (dict "variable" … "from" "name key"). */}}
{{- define "penstock.variable" -}}
{{- $from := splitList " " .from -}}
- name: {{ .variable }}
  valueFrom:
    secretKeyRef:
      name: {{ index $from 0 }}
      key: {{ index $from 1 }}
{{- end }}

{{/* A source of a projected volume: one secret as a file. Takes (dict "file" … "from" "name key"). */}}
{{- define "penstock.file" -}}
{{- $from := splitList " " .from -}}
- secret:
    name: {{ index $from 0 }}
    items:
      - key: {{ index $from 1 }}
        path: {{ .file }}
{{- end }}
