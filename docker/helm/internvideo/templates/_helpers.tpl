{{- define "internvideo.name" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "internvideo.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "internvideo.labels" -}}
{{ include "internvideo.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{/* Image reference; call with (dict "root" $ "image" .Values.server.image) */}}
{{- define "internvideo.image" -}}
{{ .image.repository }}:{{ .image.tag | default .root.Chart.AppVersion }}{{ with .image.digest }}@{{ . }}{{ end }}
{{- end -}}

{{/* A volume from (dict "name" "engine" "directory" .Values.storage.engine); fails where neither claim nor host path is given. */}}
{{- define "internvideo.volume" -}}
- name: {{ .name }}
  {{- if .directory.claim }}
  persistentVolumeClaim:
    claimName: {{ .directory.claim }}
    readOnly: true
  {{- else if .directory.hostPath }}
  hostPath:
    path: {{ .directory.hostPath }}
    type: Directory
  {{- else }}
  {{- fail (printf "storage.%s needs a claim or a hostPath" .name) }}
  {{- end }}
{{- end -}}

{{- define "internvideo.mount" -}}
- name: {{ .name }}
  mountPath: /{{ .name }}
  readOnly: true
  {{- with .directory.subPath }}
  subPath: {{ . }}
  {{- end }}
{{- end -}}

{{- define "internvideo.hasMedia" -}}
{{- if or .Values.storage.media.claim .Values.storage.media.hostPath }}true{{ end -}}
{{- end -}}

{{- define "internvideo.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* The settings as options: maxFrames is --max-frames, a list repeats its option, null is the default. */}}
{{- define "internvideo.settings" -}}
{{- range $name, $value := . }}
{{- $option := kebabcase $name }}
{{- if kindIs "bool" $value }}
- {{ printf "--%s%s" (ternary "" "no-" $value) $option }}
{{- else if kindIs "slice" $value }}
{{- range $value }}
- {{ printf "--%s=%s" $option . | quote }}
{{- end }}
{{- else if not (kindIs "invalid" $value) }}
{{- /* toJson: a large number is no 1.6e+07 */}}
- {{ printf "--%s=%s" $option (kindIs "string" $value | ternary $value (toJson $value)) | quote }}
{{- end }}
{{- end }}
{{- end -}}
