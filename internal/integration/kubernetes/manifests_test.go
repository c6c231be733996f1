// Package kubernetes checks the manifests in examples/kubernetes against the types of the
// Kubernetes API and against the library.
package kubernetes

import (
	"io/fs"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/yaml"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
)

// folder contains the manifests.
var folder = os.DirFS("../../../examples/kubernetes")

// leave is the most time that a worker takes to leave after its handlers have stopped.
const leave = 5 * time.Second

// decode reads a manifest into its type of the API. An unknown field, or a value of another
// type, is an error.
func decode(t *testing.T, file string, into any) {
	t.Helper()
	text, err := fs.ReadFile(folder, file)
	if err == nil {
		err = yaml.UnmarshalStrict(text, into)
	}
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
}

func manifests(t *testing.T) (d appsv1.Deployment, h autoscalingv2.HorizontalPodAutoscaler, p policyv1.PodDisruptionBudget) {
	t.Helper()
	decode(t, "deployment.yaml", &d)
	decode(t, "hpa.yaml", &h)
	decode(t, "pdb.yaml", &p)
	for _, got := range []struct{ file, version, kind, wantVersion, wantKind string }{
		{"deployment.yaml", d.APIVersion, d.Kind, "apps/v1", "Deployment"},
		{"hpa.yaml", h.APIVersion, h.Kind, "autoscaling/v2", "HorizontalPodAutoscaler"},
		{"pdb.yaml", p.APIVersion, p.Kind, "policy/v1", "PodDisruptionBudget"},
	} {
		if got.version != got.wantVersion || got.kind != got.wantKind {
			t.Errorf("%s is a %s %s, want %s %s", got.file, got.version, got.kind, got.wantVersion, got.wantKind)
		}
	}
	return d, h, p
}

// The API server checks more than the types do. These are the checks that concern these
// manifests.
func TestManifests(t *testing.T) {
	d, h, p := manifests(t)
	pod := d.Spec.Template.Spec
	if !contains(d.Spec.Template.Labels, d.Spec.Selector.MatchLabels) {
		t.Error("the Deployment does not select its own pods")
	}
	if !contains(d.Spec.Template.Labels, p.Spec.Selector.MatchLabels) {
		t.Error("the PodDisruptionBudget does not select the Deployment's pods")
	}
	for _, c := range pod.TopologySpreadConstraints {
		if !contains(d.Spec.Template.Labels, c.LabelSelector.MatchLabels) {
			t.Error("the topology spread does not select the Deployment's pods")
		}
	}
	if ref := h.Spec.ScaleTargetRef; ref.APIVersion != d.APIVersion || ref.Kind != d.Kind || ref.Name != d.Name {
		t.Errorf("the HPA scales %+v, and the Deployment is %s", ref, d.Name)
	}
	if d.Spec.Replicas != nil {
		t.Error("the Deployment sets replicas, and so does the HPA")
	}
	if u := d.Spec.Strategy.RollingUpdate; zero(u.MaxSurge) && zero(u.MaxUnavailable) {
		t.Error("maxSurge and maxUnavailable can't both be 0")
	}
	if (p.Spec.MaxUnavailable == nil) == (p.Spec.MinAvailable == nil) {
		t.Error("a PodDisruptionBudget has one of maxUnavailable and minAvailable")
	}
	if d.Spec.MinReadySeconds >= *d.Spec.ProgressDeadlineSeconds {
		t.Error("progressDeadlineSeconds must exceed minReadySeconds")
	}
	if *h.Spec.MinReplicas < 1 || h.Spec.MaxReplicas < *h.Spec.MinReplicas {
		t.Errorf("from %d to %d replicas", *h.Spec.MinReplicas, h.Spec.MaxReplicas)
	}
	for name, rules := range map[string]*autoscalingv2.HPAScalingRules{"up": h.Spec.Behavior.ScaleUp, "down": h.Spec.Behavior.ScaleDown} {
		if w := *rules.StabilizationWindowSeconds; w < 0 || w > 3600 {
			t.Errorf("scale %s: a stabilization window of %d s; it is 0 to 3600", name, w)
		}
		for _, policy := range rules.Policies {
			if policy.PeriodSeconds < 1 || policy.PeriodSeconds > 1800 || policy.Value < 1 {
				t.Errorf("scale %s: %+v; periodSeconds is 1 to 1800, value is positive", name, policy)
			}
		}
	}
	for _, c := range pod.Containers {
		for name, limit := range c.Resources.Limits {
			if request, ok := c.Resources.Requests[name]; ok && request.Cmp(limit) > 0 {
				t.Errorf("%s: the request of %s exceeds the limit", c.Name, name)
			}
		}
		if _, limited := c.Resources.Limits[corev1.ResourceCPU]; limited {
			t.Errorf("%s: a limit of CPU stops workers that have to prove that they are there", c.Name)
		}
	}
}

// Defaults of the library, as in the documentation of Config.
const (
	coordinationTimeout = 60 * time.Second
	joinWindow          = 500 * time.Millisecond
)

// The manifests agree with the library.
func TestManifestsFitTheLibrary(t *testing.T) {
	d, h, _ := manifests(t)
	pod := d.Spec.Template.Spec
	grace := time.Duration(*pod.TerminationGracePeriodSeconds) * time.Second
	if least := coordinationTimeout + leave; grace <= least {
		t.Errorf("terminationGracePeriodSeconds is %s; a worker may take %s", grace, least)
	}
	worker := pod.Containers[0]
	for name, probe := range map[string]*corev1.Probe{"liveness": worker.LivenessProbe, "readiness": worker.ReadinessProbe} {
		if !slices.ContainsFunc(worker.Ports, func(p corev1.ContainerPort) bool { return intstr.FromString(p.Name) == probe.HTTPGet.Port }) {
			t.Errorf("the %s probe asks port %s, and there is none of that name", name, probe.HTTPGet.Port.String())
		}
		for _, c := range []struct {
			health orchestrator.Health
			status int
		}{
			{orchestrator.Health{Live: true, Ready: true}, http.StatusOK},
			{orchestrator.Health{Live: name != "liveness", Ready: name != "readiness"}, http.StatusServiceUnavailable},
		} {
			r := httptest.NewRecorder()
			orchestrator.HealthHandler(fixed(c.health)).ServeHTTP(r, httptest.NewRequest(http.MethodGet, probe.HTTPGet.Path, nil))
			if r.Code != c.status {
				t.Errorf("the %s probe %s of %+v is answered with %d, want %d", name, probe.HTTPGet.Path, c.health, r.Code, c.status)
			}
		}
	}
	i := slices.IndexFunc(worker.Env, func(e corev1.EnvVar) bool { return e.Name == "JOIN_WINDOW" })
	if i < 0 {
		t.Fatal("there is no JOIN_WINDOW")
	}
	if window, err := time.ParseDuration(worker.Env[i].Value); err != nil || window <= joinWindow {
		t.Errorf("JOIN_WINDOW is %q (%v), want a duration above the default", worker.Env[i].Value, err)
	}

	const metric = "pupsourcing_orchestrator_lag_seconds"
	var external []string
	for _, m := range h.Spec.Metrics {
		if m.External != nil {
			external = append(external, m.External.Metric.Name)
		}
	}
	if !slices.Equal(external, []string{metric}) {
		t.Errorf("the HPA goes by %v, want %s", external, metric)
	}
	adapter, err := fs.ReadFile(folder, "prometheus-adapter.yaml")
	if err != nil || !strings.Contains(string(adapter), "as: "+metric+"\n") {
		t.Errorf("prometheus-adapter.yaml has no %s (%v)", metric, err)
	}
	// Another test compares its table with a scrape.
	exported, err := os.ReadFile("../../../prometheus/README.md")
	row := "| `" + strings.TrimPrefix(metric, "pupsourcing_orchestrator_") + "` | gauge | replica_set,"
	if err != nil || !strings.Contains(string(exported), row) {
		t.Errorf("the module prometheus exports no %s of a replica_set (%v)", metric, err)
	}
}

// Applying the folder applies all of its files.
func TestKustomization(t *testing.T) {
	var k struct {
		APIVersion string   `json:"apiVersion"`
		Kind       string   `json:"kind"`
		Resources  []string `json:"resources"`
	}
	decode(t, "kustomization.yaml", &k)
	if k.APIVersion != "kustomize.config.k8s.io/v1beta1" || k.Kind != "Kustomization" {
		t.Errorf("it is a %s %s", k.APIVersion, k.Kind)
	}
	files, err := fs.Glob(folder, "*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	others := []string{"kustomization.yaml", "prometheus-adapter.yaml"} // values for a chart
	files = slices.DeleteFunc(files, func(f string) bool { return slices.Contains(others, f) })
	if !slices.Equal(files, slices.Sorted(slices.Values(k.Resources))) {
		t.Errorf("the resources are %v, and the manifests %v", k.Resources, files)
	}
}

type fixed orchestrator.Health

func (h fixed) Health() orchestrator.Health { return orchestrator.Health(h) }

// contains reports whether a pod has all labels of a selector.
func contains(labels, selector map[string]string) bool {
	for k := range maps.Keys(selector) {
		if labels[k] != selector[k] {
			return false
		}
	}
	return len(selector) > 0
}

func zero(v *intstr.IntOrString) bool { return v != nil && (v.String() == "0" || v.String() == "0%") }
