{{/* The mapper: what must be given, and where its parts are. */}}

{{/* All that is wrong with its values, at once. Whatever renders a part of it begins with this. */}}
{{- define "penstock.mapper.check" -}}
{{- $m := .Values.mapper -}}
{{- $faults := list -}}
{{- if not (or $m.user .Values.dev.enabled) }}{{ $faults = append $faults "give mapper.user: who consumes, as tenant/user, of role service" }}{{ end -}}
{{- if not (or $m.passwordSecret .Values.dev.enabled) }}{{ $faults = append $faults "give mapper.passwordSecret: the Secret with the password of mapper.user" }}{{ end -}}
{{- if not $m.api.url }}{{ $faults = append $faults "give mapper.api.url: the REST API that requests go to" }}{{ end -}}
{{- if not $m.api.user }}{{ $faults = append $faults "give mapper.api.user: who calls the REST API, as tenant/user" }}{{ end -}}
{{- if not $m.api.passwordSecret }}{{ $faults = append $faults "give mapper.api.passwordSecret: the Secret with the password of mapper.api.user" }}{{ end -}}
{{- if not (or $m.config $m.existingConfigMap) }}{{ $faults = append $faults "give mapper.config or mapper.existingConfigMap: the routes, for example --set-file mapper.config=mapper/examples/json.toml" }}{{ end -}}
{{- if and $m.existingConfigMap (or $m.config $m.files) }}{{ $faults = append $faults "give either mapper.existingConfigMap or mapper.config with mapper.files, not both" }}{{ end -}}
{{- if hasKey $m.files "mapper.toml" }}{{ $faults = append $faults "mapper.files has a file mapper.toml: that is mapper.config" }}{{ end -}}
{{- if and (hasPrefix "https://" $m.api.url) (not $m.api.caConfigMap) (not $m.extraVolumeMounts) }}{{ $faults = append $faults "give mapper.api.caConfigMap: the image has no certificates to trust (or mount some with mapper.extraVolumeMounts and set SSL_CERT_FILE)" }}{{ end -}}
{{- if not (or .Values.router.acceptPlainPasswords $m.server) }}{{ $faults = append $faults "with router.acceptPlainPasswords=false the doors speak TLS, which the mapper does not: give mapper.server, for example that of a proxy among mapper.extraContainers" }}{{ end -}}
{{- with $faults }}{{ fail (printf "mapper.enabled: %s" (join "; " .)) }}{{ end -}}
{{- end }}

{{- define "penstock.mapper.configMap" -}}
{{ .Values.mapper.existingConfigMap | default (printf "%s-mapper" (include "penstock.fullname" .)) }}
{{- end }}

{{/* Of whom it is: as given, or of tenant demo. Gives "name key". */}}
{{- define "penstock.mapper.password" -}}
{{- with .Values.mapper -}}
{{- if .passwordSecret }}{{ .passwordSecret }} {{ .passwordSecretKey }}{{ else }}{{ include "penstock.fullname" $ }}-demo password{{ end }}
{{- end }}
{{- end }}

{{/* Ports that requests go to, as a JSON array: as given, or the one of the URL. */}}
{{- define "penstock.mapper.platformPorts" -}}
{{- include "penstock.mapper.check" . -}}
{{- $url := urlParse .Values.mapper.api.url -}}
{{- $port := regexFind ":[0-9]+$" $url.host | trimPrefix ":" | default (ternary "443" "80" (eq $url.scheme "https")) -}}
{{ .Values.networkPolicy.platformPorts | default (list (int $port)) | toJson }}
{{- end }}
