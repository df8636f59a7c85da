// Package vole_test holds the rules of the house: which package may import
// which, and where unsafe may stand. docs/design.md has the reasons.
package vole_test

import (
	"encoding/json"
	"errors"
	"go/parser"
	"go/token"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const module = "github.com/vole-vmm/vole"

// mayImport says which of our packages each one may import, directly or not.
// A name that ends in "/" stands for all below it.
var mayImport = map[string][]string{
	"kvm":                    {},
	"memory":                 {},
	"devices":                {},
	"boot/acpi":              {},
	"boot/initramfs":         {},
	"boot":                   {"memory", "boot/"},
	"boot/kernel":            {"memory", "boot", "boot/acpi", "boot/initramfs"},
	"boot/kernel/pull":       {"boot/kernel", "boot/initramfs"},
	"guest":                  {"boot/initramfs", "guest/wire", "guest/agent"},
	"guest/agent":            {"guest/wire"},
	"guest/wire":             {},
	"guest/remote":           {"guest/wire"},
	"devices/pci":            {"devices"},
	"virtio":                 {"memory"},
	"virtio/mmio":            {"virtio", "memory", "devices", "devices/pci"},
	"virtio/pci":             {"virtio", "memory", "devices", "devices/pci"},
	"virtio/block":           {"virtio", "memory"},
	"virtio/block/blocktest": {"virtio", "memory", "virtio/block"},
	"virtio/rng":             {"virtio", "memory"},
	"virtio/net":             {"virtio", "memory"},
	"virtio/net/usernet":     {"virtio", "virtio/net", "memory"},
	"virtio/vsock":           {"virtio", "memory"},
	"virtio/console":         {"virtio", "memory"},
	"virtio/fs":              {"virtio", "memory"},
	"virtio/fs/hostdir":      {},
	"virtio/virtiotest":      {"virtio", "virtio/mmio", "virtio/pci", "memory", "devices", "devices/pci"},
	"vmm":                    {"kvm", "memory", "boot", "boot/", "devices", "devices/pci", "virtio", "virtio/mmio", "virtio/pci"},
	"vmm/harness":            {"vmm", "kvm", "memory", "boot", "boot/", "devices", "devices/pci", "guest", "guest/", "virtio", "virtio/mmio", "virtio/pci", "virtio/vsock", "virtio/fs", "virtio/fs/hostdir"},
	"vmm/harness/gotest":     {},
	"vmm/vmtest":             {"vmm/harness", "vmm/harness/gotest", "vmm", "kvm", "memory", "boot", "boot/", "devices", "devices/pci", "guest", "guest/", "virtio", "virtio/mmio", "virtio/pci", "virtio/vsock", "virtio/fs", "virtio/fs/hostdir"},
	"vmm/spec":               {"vmm", "kvm", "memory", "boot", "boot/", "devices", "devices/pci", "virtio", "virtio/"},
	"cmd/vole":               {"vmm", "vmm/spec", "vmm/harness", "vmm/harness/gotest", "kvm", "memory", "boot", "boot/", "devices", "devices/pci", "guest", "guest/", "virtio", "virtio/"},
}

// mayImportDirectly narrows mayImport where what comes along is not to be
// named.
var mayImportDirectly = map[string][]string{
	"vmm/spec":   {"vmm", "memory", "boot", "boot/", "virtio", "virtio/"},
	"vmm/vmtest": {"vmm", "vmm/harness", "vmm/harness/gotest", "boot", "boot/kernel", "guest", "guest/remote", "guest/wire", "virtio", "virtio/fs", "virtio/fs/hostdir"},
	"cmd/vole":   {"vmm", "vmm/spec", "vmm/harness", "vmm/harness/gotest", "memory", "boot", "boot/", "guest", "guest/remote", "guest/wire", "virtio"},
}

// unsafePackages may hold files named *_unsafe.go.
var unsafePackages = []string{"kvm", "memory", "virtio", "virtio/block", "virtio/net", "virtio/net/usernet", "virtio/vsock"}

// vmmLinks are the modules that a program which imports only vmm may link.
var vmmLinks = []string{
	module, "golang.org/x/sys",
	"github.com/klauspost/compress", "github.com/pierrec/lz4/v4", "github.com/anchore/go-lzo",
	"github.com/therootcompany/xz", "github.com/ulikunitz/xz",
}

type pkg struct {
	ImportPath string
	Dir        string
	GoFiles    []string
	Imports    []string
	Deps       []string
	Standard   bool
	Module     *struct{ Path string }
}

func list(t *testing.T, args ...string) []pkg {
	t.Helper()
	out, err := exec.Command("go", append([]string{"list", "-json=ImportPath,Dir,GoFiles,Imports,Deps,Standard,Module"}, args...)...).Output()
	var failed *exec.ExitError
	if errors.As(err, &failed) {
		t.Fatalf("go list: %s", failed.Stderr)
	}
	require.NoError(t, err)
	var all []pkg
	d := json.NewDecoder(strings.NewReader(string(out)))
	for {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

func ours(path string) (string, bool) {
	rest, ok := strings.CutPrefix(path, module+"/")
	return rest, ok
}

func allowed(list []string, name string) bool {
	return slices.ContainsFunc(list, func(a string) bool {
		return a == name || strings.HasSuffix(a, "/") && strings.HasPrefix(name, a)
	})
}

func TestImportsPointOneWay(t *testing.T) {
	for _, p := range list(t, "./...") {
		name, ok := ours(p.ImportPath)
		if !ok || len(p.GoFiles) == 0 {
			continue
		}
		rules, ok := mayImport[name]
		if !assert.True(t, ok, "%s has no rule: say in mayImport what it may import", name) {
			continue
		}
		for _, d := range p.Deps {
			if dep, ok := ours(d); ok {
				assert.True(t, allowed(rules, dep), "%s must not depend on %s", name, dep)
			}
		}
		direct, narrowed := mayImportDirectly[name]
		for _, i := range p.Imports {
			if dep, ok := ours(i); ok && narrowed {
				assert.True(t, allowed(direct, dep), "%s must not import %s itself", name, dep)
			}
		}
	}
}

func TestVMMLinksLittle(t *testing.T) {
	for _, p := range list(t, "-deps", "./vmm") {
		if !p.Standard {
			assert.Contains(t, vmmLinks, p.Module.Path, "linked for %s", p.ImportPath)
		}
		assert.NotEqual(t, "net", p.ImportPath)
		assert.False(t, strings.HasPrefix(p.ImportPath, "net/"), "%s is linked", p.ImportPath)
	}
	for _, p := range list(t, "./...") {
		name, _ := ours(p.ImportPath)
		if name != "cmd/vole" && name != "vmm/vmtest" {
			assert.NotContains(t, p.Deps, module+"/boot/kernel/pull", "linked for %s", name)
		}
	}
	for _, p := range list(t, "-deps", "./cmd/vole") {
		if !p.Standard && p.ImportPath != module+"/boot/kernel/pull" {
			assert.NotContains(t, p.Imports, "net/http", "imported by %s", p.ImportPath)
		}
		if p.Module != nil {
			assert.NotContains(t, []string{"github.com/bobuhiro11/gokvm", "github.com/stretchr/testify"}, p.Module.Path)
		}
	}
}

func TestUnsafeStaysInItsFiles(t *testing.T) {
	for _, p := range list(t, "./...") {
		name, _ := ours(p.ImportPath)
		for _, f := range p.GoFiles {
			file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, f), nil, parser.ImportsOnly)
			require.NoError(t, err)
			for _, i := range file.Imports {
				path, err := strconv.Unquote(i.Path.Value)
				require.NoError(t, err)
				if path != "unsafe" {
					continue
				}
				assert.Contains(t, unsafePackages, name, "%s imports unsafe", f)
				stem := strings.TrimSuffix(strings.TrimSuffix(f, ".go"), "_amd64")
				assert.True(t, strings.HasSuffix(stem, "_unsafe"), "%s/%s imports unsafe: its name must end in _unsafe.go", name, f)
			}
		}
	}
}
