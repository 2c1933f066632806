{{- define "crossdock.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "crossdock.serviceAccountName" -}}
{{- default "crossplane" .Values.serviceAccount.name -}}
{{- end -}}

{{- define "crossdock.image" -}}
{{- if .Values.image.ignoreTag -}}
{{- .Values.image.repository -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (default (printf "v%s" .Chart.AppVersion) .Values.image.tag) -}}
{{- end -}}
{{- end -}}

{{- define "crossdock.selectorLabels" -}}
app.kubernetes.io/name: {{ include "crossdock.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "crossdock.labels" -}}
{{ include "crossdock.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/component: package-manager
app.kubernetes.io/part-of: crossdock
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "crossdock.healthPort" -}}
{{- default 8081 .Values.readiness.port -}}
{{- end -}}

{{- define "crossdock.metricsPort" -}}
{{- default 8080 .Values.metrics.port -}}
{{- end -}}

{{/* Environment that `init` and `start` share. */}}
{{- define "crossdock.environment" -}}
- name: POD_NAMESPACE
  valueFrom:
    fieldRef:
      fieldPath: metadata.namespace
- name: POD_NAME
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
- name: POD_SERVICE_ACCOUNT
  valueFrom:
    fieldRef:
      fieldPath: spec.serviceAccountName
{{- end -}}
