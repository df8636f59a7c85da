package pull

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/boot/kernel"
)

// image of a registry: what is put into files.
type testImage struct {
	f          *files
	repository string
	layers     []map[string]any
}

func newImage(f *files, layers ...[]byte) *testImage {
	i := &testImage{f: f, repository: "owner/kernels"}
	for _, l := range layers {
		digest := sumPrefix + sumOf(l)
		f.bodies["/v2/"+i.repository+"/blobs/"+digest] = l
		i.layers = append(i.layers, map[string]any{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest, "size": len(l)})
	}
	return i
}

// push puts a document under a reference and its digest, which it returns.
func (i *testImage) push(ref string, doc map[string]any) string {
	b, _ := json.Marshal(doc)
	digest := sumPrefix + sumOf(b)
	for _, r := range []string{ref, digest} {
		i.f.bodies["/v2/"+i.repository+"/manifests/"+r] = b
	}
	return digest
}

func (i *testImage) manifest() map[string]any {
	return map[string]any{"schemaVersion": 2, "mediaType": typeOCIManifest, "config": map[string]any{}, "layers": i.layers}
}

func (i *testImage) name(ref string) string {
	return strings.TrimPrefix(i.f.URL, "http://") + "/" + i.repository + ref
}

func source(t testing.TB, names ...string) Source {
	t.Helper()
	s, err := Parse(names...)
	require.NoError(t, err)
	require.Len(t, s, 1)
	return s[0]
}

func kernelLayers(t testing.TB) [][]byte {
	all := kernelFiles(testRelease)
	return [][]byte{
		pack(t, ".gz", tarball(t, append([]entry{{"lib/modules/" + testRelease + "/kernel/gone.ko", "x", ""}}, all[:3]...)...)),
		pack(t, ".zst", tarball(t, append([]entry{{"lib/modules/" + testRelease + "/kernel/.wh.gone.ko", "", ""}}, all[3:]...)...)),
	}
}

func TestPullImage(t *testing.T) {
	f := serve(t)
	i := newImage(f, kernelLayers(t)...)
	digest := i.push("6.12", i.manifest())
	other := i.push("arm", map[string]any{"layers": []any{}})
	platform := func(arch, digest string) map[string]any {
		return map[string]any{"mediaType": typeOCIManifest, "digest": digest, "platform": map[string]any{"os": "linux", "architecture": arch}}
	}
	i.push("multi", map[string]any{"mediaType": typeOCIIndex, "manifests": []any{platform("arm64", other), platform("amd64", digest)}})
	i.push("arm-only", map[string]any{"mediaType": typeDockerList, "manifests": []any{platform("arm64", other)}})

	for _, ref := range []string{":6.12", "@" + digest, ":6.12@" + digest, ":multi"} {
		opt := testOptions(t)
		r, err := Pull(t.Context(), source(t, i.name(ref)), opt)
		require.NoError(t, err, ref)
		assert.Equal(t, digest, r.ID)
		assert.Equal(t, testRelease, r.Release)
		assert.Empty(t, r.Warnings)
		assert.Len(t, r.Parts, 2)
		base := "lib/modules/" + testRelease + "/"
		assert.Equal(t, []string{"config", "kernel.json", base + "kernel/a.ko", base + "kernel/b.ko", base + "modules.alias", base + "modules.alias.bin",
			base + "modules.builtin", base + "modules.builtin.bin", base + "modules.dep", base + "modules.dep.bin", base + "modules.order", base + "modules.softdep", "vmlinuz"},
			names(t, filepath.Dir(r.Path)))
		dir, err := kernel.ModulesFor(r.Path)
		require.NoError(t, err)
		assert.Equal(t, r.ModulesDir, dir)

		f.seen()
		r, err = Pull(t.Context(), source(t, i.name(ref)), opt)
		require.NoError(t, err, ref)
		assert.True(t, r.Present)
		assert.NotContains(t, strings.Join(f.seen(), " "), "blobs")
	}
	_, err := Pull(t.Context(), source(t, i.name(":arm-only")), testOptions(t))
	require.ErrorIs(t, err, ErrNotFound)
	assert.ErrorContains(t, err, "linux/arm64")
	_, err = Pull(t.Context(), source(t, i.name(":none")), testOptions(t))
	assert.ErrorIs(t, err, ErrNotFound)
}

func TestPullImageRefuses(t *testing.T) {
	good := kernelLayers(t)
	for name, c := range map[string]struct {
		change func(i *testImage, m map[string]any)
		err    error
		words  string
	}{
		"a layer of another digest": {func(i *testImage, m map[string]any) {
			for path := range i.f.bodies {
				if strings.Contains(path, "blobs") {
					i.f.bodies[path] = append([]byte{}, i.f.bodies[path]...)
					i.f.bodies[path][10] ^= 1
				}
			}
		}, ErrChecksum, "SHA-256"},
		"a layer of another size": {func(i *testImage, m map[string]any) { i.layers[0]["size"] = 5 }, ErrArchive, "want 5"},
		"a digest that is none":   {func(i *testImage, m map[string]any) { i.layers[0]["digest"] = "sha256:../../x" }, ErrArchive, "digest"},
		"another kind of layer":   {func(i *testImage, m map[string]any) { i.layers[0]["mediaType"] = "application/json" }, ErrArchive, "kind"},
		"a size that is huge":     {func(i *testImage, m map[string]any) { i.layers[0]["size"] = int64(1) << 62 }, ErrArchive, "bytes"},
		"no layers":               {func(i *testImage, m map[string]any) { m["layers"] = nil }, ErrArchive, "0 layers"},
		"many layers":             {func(i *testImage, m map[string]any) { m["layers"] = make([]map[string]any, 257) }, ErrArchive, "257 layers"},
		"no manifest":             {func(i *testImage, m map[string]any) { m["layers"] = "x" }, ErrArchive, "manifest"},
		"no kernel in it": {func(i *testImage, m map[string]any) {
			other := newImage(i.f, tarball(t, entry{"etc/passwd", "x", ""}))
			m["layers"] = other.layers
		}, ErrNoKernel, ""},
		"a way out in it": {func(i *testImage, m map[string]any) {
			other := newImage(i.f, tarball(t, entry{"../../../x", "x", ""}))
			m["layers"] = other.layers
		}, ErrArchive, "../../../x"},
	} {
		t.Run(name, func(t *testing.T) {
			i := newImage(serve(t), good...)
			m := i.manifest()
			c.change(i, m)
			i.push("x", m)
			opt := testOptions(t)
			_, err := Pull(t.Context(), source(t, i.name(":x")), opt)
			require.ErrorIs(t, err, c.err)
			assert.ErrorContains(t, err, c.words)
			for _, n := range names(t, opt.Dir) {
				assert.NotContains(t, n, "stage")
				assert.NotContains(t, n, "vmlinuz")
			}
		})
	}
	t.Run("a manifest of another digest", func(t *testing.T) {
		i := newImage(serve(t), good...)
		digest := i.push("x", i.manifest())
		i.f.bodies["/v2/"+i.repository+"/manifests/"+digest] = []byte("{}")
		_, err := Pull(t.Context(), source(t, i.name("@"+digest)), testOptions(t))
		assert.ErrorIs(t, err, ErrChecksum)
	})
	for _, digest := range []string{"sha512:" + strings.Repeat("0", 128), "sha256:" + strings.Repeat("0", 63), "latest", ""} {
		t.Run(fmt.Sprintf("an index with the digest %.10q", digest), func(t *testing.T) {
			f := serve(t)
			i := newImage(f, good...)
			i.push(digest, i.manifest())
			pinned := i.push("x", map[string]any{"manifests": []any{map[string]any{"digest": digest}}})
			_, err := Pull(t.Context(), source(t, i.name("@"+pinned)), testOptions(t))
			assert.ErrorIs(t, err, ErrArchive)
			assert.Len(t, f.seen(), 1, "it is not asked for")
		})
	}
}

// An interrupted pull of an image goes on where it ended, with the layers that came whole.
func TestPullImageGoesOn(t *testing.T) {
	f := serve(t)
	layers := kernelLayers(t)
	i := newImage(f, layers...)
	i.push("x", i.manifest())
	opt := testOptions(t)
	opt.web.retries = nil
	second := "/v2/" + i.repository + "/blobs/" + sumPrefix + sumOf(layers[1])
	held := f.bodies[second]
	delete(f.bodies, second)
	_, err := Pull(t.Context(), source(t, i.name(":x")), opt)
	require.ErrorIs(t, err, ErrNotFound)
	list, err := Records(opt.Dir)
	require.NoError(t, err)
	assert.Empty(t, list)
	f.bodies[second] = held
	f.cut, f.cuts = 0, 0
	f.seen()
	_, err = Pull(t.Context(), source(t, i.name(":x")), opt)
	require.NoError(t, err)
	assert.Equal(t, []string{"GET /v2/owner/kernels/manifests/x", "GET " + second}, f.seen())
	_, err = os.Stat(filepath.Join(opt.Dir, workName))
	assert.ErrorIs(t, err, os.ErrNotExist)
}

// guarded wants tokens, or a login.
type guarded struct {
	*files
	challenge string
	want      string // Authorization
	token     string // the answer of /token
	login     string // Authorization of /token
	asked     []string
}

func (g *guarded) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.URL.Path == "/token":
		g.asked = append(g.asked, r.URL.RawQuery)
		if r.Header.Get("Authorization") != g.login {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		fmt.Fprint(w, g.token)
	case r.Header.Get("Authorization") != g.want:
		w.Header().Set("WWW-Authenticate", strings.ReplaceAll(g.challenge, "URL", g.URL))
		w.WriteHeader(http.StatusUnauthorized)
	default:
		g.files.ServeHTTP(w, r)
	}
}

func TestRegistryTokens(t *testing.T) {
	login := base64.StdEncoding.EncodeToString([]byte("user:word"))
	const bearer = `Bearer realm="URL/token",service="the registry",scope="x"`
	for name, c := range map[string]struct {
		guarded
		loggedIn bool
		err      string
	}{
		"a token":                {guarded: guarded{challenge: bearer, want: "Bearer t", token: `{"token": "t"}`}},
		"by its other name":      {guarded: guarded{challenge: bearer, want: "Bearer t", token: `{"access_token": "t"}`}},
		"a token with a login":   {guarded: guarded{challenge: bearer, want: "Bearer t", token: `{"token": "t"}`, login: "Basic " + login}, loggedIn: true},
		"a login":                {guarded: guarded{challenge: `Basic realm="x"`, want: "Basic " + login}, loggedIn: true},
		"no login":               {guarded: guarded{challenge: `Basic realm="x"`, want: "Basic " + login}, err: "docker login"},
		"the token is no use":    {guarded: guarded{challenge: bearer, want: "Bearer t", token: `{"token": "u"}`}, err: "401"},
		"no token":               {guarded: guarded{challenge: bearer, want: "Bearer t", token: `{}`}, err: "without a token"},
		"a token with a newline": {guarded: guarded{challenge: bearer, want: "Bearer t", token: `{"token": "t\nx"}`}, err: "without a token"},
		"the token is denied":    {guarded: guarded{challenge: bearer, want: "Bearer t", login: "x"}, err: "403"},
		"no realm":               {guarded: guarded{challenge: `Bearer service="x"`, want: "x"}, err: `names ""`},
		"an odd realm":           {guarded: guarded{challenge: `Bearer realm="file:///etc/passwd"`, want: "x"}, err: "file:"},
		"another kind":           {guarded: guarded{challenge: `Negotiate`, want: "x"}, err: `"Negotiate"`},
		"no kind":                {guarded: guarded{want: "x"}, err: `""`},
	} {
		t.Run(name, func(t *testing.T) {
			g := &c.guarded
			g.files = serve(t)
			g.Config.Handler = g
			i := newImage(g.files, kernelLayers(t)...)
			i.push("x", i.manifest())
			dir := t.TempDir()
			t.Setenv("DOCKER_CONFIG", dir)
			t.Setenv("REGISTRY_AUTH_FILE", "")
			t.Setenv("XDG_RUNTIME_DIR", "")
			if c.loggedIn {
				b, err := json.Marshal(map[string]any{"auths": map[string]any{strings.TrimPrefix(g.URL, "http://"): map[string]string{"auth": login}}})
				require.NoError(t, err)
				require.NoError(t, os.WriteFile(filepath.Join(dir, "config.json"), b, 0o600))
			}
			_, err := Pull(t.Context(), source(t, i.name(":x")), testOptions(t))
			if c.err != "" {
				require.ErrorContains(t, err, c.err)
				assert.NotContains(t, err.Error(), "\n")
				return
			}
			require.NoError(t, err)
			if strings.HasPrefix(g.want, "Bearer") {
				assert.Equal(t, []string{"scope=repository%3Aowner%2Fkernels%3Apull&service=the+registry"}, g.asked)
			}
		})
	}
}

func TestChallengeParams(t *testing.T) {
	for s, want := range map[string]map[string]string{
		`realm="https://x/y?a=b,c",service=z , Scope="s"`: {"realm": "https://x/y?a=b,c", "service": "z", "scope": "s"},
		``: {}, `x`: {}, `a="b`: {"a": "b"}, `=`: {"": ""}, `a="b"x,c=d`: {"a": "b", "c": "d"},
	} {
		assert.Equal(t, want, challengeParams(s), s)
	}
}

func FuzzChallengeParams(f *testing.F) {
	f.Add(`realm="https://x/y?a=b,c",service=z`)
	f.Fuzz(func(t *testing.T, s string) { challengeParams(s) })
}
