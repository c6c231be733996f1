// Package kubernetes checks the manifests in examples/kubernetes, as kustomize builds them,
// against the types of the Kubernetes API and against the library.
package kubernetes

import (
	"io/fs"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	_ "github.com/lib/pq"
	monitoringv1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/api/resource"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/ops"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

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
	decode(t, "autoscaling/hpa.yaml", &h)
	decode(t, "pdb.yaml", &p)
	for _, got := range []struct{ file, version, kind, wantVersion, wantKind string }{
		{"deployment.yaml", d.APIVersion, d.Kind, "apps/v1", "Deployment"},
		{"autoscaling/hpa.yaml", h.APIVersion, h.Kind, "autoscaling/v2", "HorizontalPodAutoscaler"},
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
	if d.Spec.Replicas == nil || *d.Spec.Replicas < 2 {
		t.Error("without the HPA, the Deployment should have 2 replicas: one crash leaves another")
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
	adapter, err := fs.ReadFile(folder, "autoscaling/prometheus-adapter.yaml")
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

// build returns what kustomize makes of the folder, or of one in it, by kind and name. Of the
// folder, components may be switched on, as its comment says.
func build(t *testing.T, under string, components ...string) map[string]*resource.Resource {
	t.Helper()
	files := filesys.MakeFsInMemory()
	err := fs.WalkDir(folder, ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		text, err := fs.ReadFile(folder, path)
		if err != nil {
			return err
		}
		if path == "kustomization.yaml" {
			text = switchedOn(t, text, components)
		}
		return files.WriteFile("/"+path, text)
	})
	if err != nil {
		t.Fatal(err)
	}
	built, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(files, "/"+under)
	if err != nil {
		t.Fatalf("kustomize build %s with %v: %v", under, components, err)
	}
	all := map[string]*resource.Resource{}
	for _, r := range built.Resources() {
		all[r.GetKind()+" "+r.GetName()] = r
	}
	return all
}

// switchedOn removes the # before components.
func switchedOn(t *testing.T, kustomization []byte, components []string) []byte {
	t.Helper()
	text := string(kustomization)
	for _, line := range append([]string{"components:"}, components...) {
		before := text
		if text = strings.Replace(text, "# "+line, line, 1); line != "components:" {
			text = strings.Replace(before, "#   - "+line, "  - "+line, 1)
		}
		if len(components) > 0 && text == before {
			t.Fatalf("kustomization.yaml has no line for %s", line)
		}
	}
	if len(components) == 0 {
		return kustomization
	}
	return []byte(text)
}

// of makes a resource what the API server has for it.
func of(t *testing.T, all map[string]*resource.Resource, name string, into any) {
	t.Helper()
	r := all[name]
	if r == nil {
		t.Fatalf("there is no %s", name)
	}
	text, err := r.AsYAML()
	if err == nil {
		err = yaml.UnmarshalStrict(text, into)
	}
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

func names(all map[string]*resource.Resource) []string { return slices.Sorted(maps.Keys(all)) }

// What kustomize makes of the folder works on any cluster; what needs more is a component,
// and changes of the rest what it has to.
func TestKustomization(t *testing.T) {
	base := []string{"Deployment projections", "PodDisruptionBudget projections", "Service projections-status"}
	scrape := []string{"prometheus.io/path", "prometheus.io/port", "prometheus.io/scrape"}
	for _, test := range []struct {
		components []string
		more       []string
		replicas   bool
		annotated  []string
	}{
		{nil, nil, true, scrape},
		{[]string{"monitoring"}, []string{"PodMonitor projections"}, true, nil},
		{[]string{"autoscaling"}, []string{"HorizontalPodAutoscaler projections"}, false, scrape},
		{[]string{"monitoring", "autoscaling"}, []string{"PodMonitor projections", "HorizontalPodAutoscaler projections"}, false, nil},
	} {
		all := build(t, "", test.components...)
		if want := slices.Sorted(slices.Values(append(slices.Clone(base), test.more...))); !slices.Equal(names(all), want) {
			t.Errorf("with %v: %v, want %v", test.components, names(all), want)
		}
		var d appsv1.Deployment
		of(t, all, "Deployment projections", &d)
		if has := d.Spec.Replicas != nil; has != test.replicas {
			t.Errorf("with %v: the Deployment sets replicas: %t, want %t", test.components, has, test.replicas)
		}
		if has := slices.Sorted(maps.Keys(d.Spec.Template.Annotations)); !slices.Equal(has, test.annotated) {
			t.Errorf("with %v: the pods are annotated with %v, want %v", test.components, has, test.annotated)
		}
	}
	// Every file belongs to what is built.
	files, err := fs.Glob(folder, "*/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"autoscaling/hpa.yaml", "autoscaling/kustomization.yaml", "autoscaling/prometheus-adapter.yaml", // values for a chart
		"migration/job.yaml", "migration/kustomization.yaml", "monitoring/kustomization.yaml", "monitoring/podmonitor.yaml"}
	if !slices.Equal(files, want) {
		t.Errorf("the folders hold %v, want %v", files, want)
	}
}

// The status page is reached in the workers, also while none is ready, and Prometheus finds
// their metrics.
func TestWhatLeadsToTheWorkers(t *testing.T) {
	all := build(t, "", "monitoring")
	var d appsv1.Deployment
	of(t, all, "Deployment projections", &d)
	var s corev1.Service
	of(t, all, "Service projections-status", &s)
	var m monitoringv1.PodMonitor
	of(t, all, "PodMonitor projections", &m)
	worker := d.Spec.Template.Spec.Containers[0]
	port := func(name string) bool {
		return slices.ContainsFunc(worker.Ports, func(p corev1.ContainerPort) bool { return p.Name == name })
	}
	if !contains(d.Spec.Template.Labels, s.Spec.Selector) || !s.Spec.PublishNotReadyAddresses || len(s.Spec.Ports) != 1 || !port(s.Spec.Ports[0].TargetPort.String()) {
		t.Errorf("the Service leads to no worker: %+v", s.Spec)
	}
	if !contains(d.Spec.Template.Labels, m.Spec.Selector.MatchLabels) || len(m.Spec.PodMetricsEndpoints) != 1 {
		t.Fatalf("the PodMonitor selects no worker: %+v", m.Spec)
	}
	if e := m.Spec.PodMetricsEndpoints[0]; e.Port == nil || !port(*e.Port) || e.Path != "/metrics" {
		t.Errorf("the PodMonitor asks for %+v", e)
	}
}

// The Job applies schema.sql as it is, with what the image has, and before the workers.
func TestMigration(t *testing.T) {
	all := build(t, "migration")
	if want := []string{"ConfigMap projections-schema", "Job projections-migration"}; !slices.Equal(names(all), want) {
		t.Fatalf("%v, want %v", names(all), want)
	}
	var c corev1.ConfigMap
	of(t, all, "ConfigMap projections-schema", &c)
	schema, err := os.ReadFile("../../../schema.sql")
	if err != nil || c.Data["schema.sql"] != string(schema) {
		t.Errorf("examples/kubernetes/migration/schema.sql is not schema.sql: copy it (%v)", err)
	}
	var j batchv1.Job
	of(t, all, "Job projections-migration", &j)
	pod := j.Spec.Template.Spec
	psql := pod.Containers[0]
	if v := pod.Volumes[0].ConfigMap; v == nil || v.Name != c.Name || psql.VolumeMounts[0].Name != pod.Volumes[0].Name {
		t.Errorf("the Job has not got the ConfigMap: %+v", pod.Volumes)
	}
	if file := "--file=" + psql.VolumeMounts[0].MountPath + "/schema.sql"; !slices.Contains(psql.Args, file) {
		t.Errorf("psql is not told %s: %v", file, psql.Args)
	}
	if psql.Args[0] != "$("+psql.Env[0].Name+")" || pod.RestartPolicy != corev1.RestartPolicyNever {
		t.Errorf("psql is not told the database: %v", psql.Args)
	}
	for _, r := range all {
		if r.GetAnnotations()["argocd.argoproj.io/hook"] != "PreSync" {
			t.Errorf("Argo CD applies the %s with the workers", r.GetKind())
		}
	}
	var d appsv1.Deployment
	decode(t, "deployment.yaml", &d)
	if contains(j.Spec.Template.Labels, d.Spec.Selector.MatchLabels) {
		t.Error("the Deployment takes the Job's pod for a worker")
	}
}

// The Job's psql, told what it is told there, makes the tables, and does no harm a second
// time.
func TestMigrationRuns(t *testing.T) {
	psql, err := exec.LookPath("psql")
	if err != nil {
		pgtest.Missing(t, "psql is not installed")
	}
	db, url := pgtest.Database(t)
	var j batchv1.Job
	of(t, build(t, "migration"), "Job projections-migration", &j)
	for range 2 {
		var args []string
		for _, a := range j.Spec.Template.Spec.Containers[0].Args {
			args = append(args, strings.NewReplacer("$(DATABASE_URL)", url, "/schema/", "../../../examples/kubernetes/migration/").Replace(a))
		}
		if out, err := exec.Command(psql, args...).CombinedOutput(); err != nil {
			t.Fatalf("psql: %v: %s", err, out)
		}
	}
	if _, err := ops.ReplicaSets(t.Context(), db); err != nil {
		t.Error(err)
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
