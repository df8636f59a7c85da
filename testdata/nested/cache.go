package nested

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
)

// ErrNotFetched says that something from the cache of Debian packages is not
// there. The error that wraps it names what, and the command that fetches it.
var ErrNotFetched = errors.New("nested: not fetched")

// manifestFormat changes whenever older caches can't be used any more.
const manifestFormat = 1

// Manifest records what the cache holds. It is written last, by rename, so
// what it names is complete.
type Manifest struct {
	Format     int         `json:"format"`
	Components []Component `json:"components"`
}

// Component is one tree of unpacked packages.
type Component struct {
	Name     string    `json:"name"`
	Dir      string    `json:"dir,omitempty"` // below the cache directory
	Packages []Package `json:"packages,omitempty"`
	// Absent is the reason why an optional component is not there.
	Absent string `json:"absent,omitempty"`
	// Again says that the next fetch tries again, although the component is absent.
	Again bool `json:"again,omitempty"`
	// Recipe tells apart the ways in which it was made of its packages.
	Recipe string `json:"recipe,omitempty"`
}

// Package is one Debian package as it was downloaded; apt has checked it
// against the archive's signed index.
type Package struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	SHA256  string `json:"sha256"`
}

// CacheDir is where fetched packages are unpacked: $VOLE_TEST_CACHE, or
// vole/test in the user's cache directory. It works without HOME too.
func CacheDir() (string, error) {
	if dir := os.Getenv("VOLE_TEST_CACHE"); dir != "" {
		return filepath.Abs(dir)
	}
	if dir := os.Getenv("XDG_CACHE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "vole", "test"), nil
	}
	home := os.Getenv("HOME")
	if home == "" {
		u, err := user.Current()
		if err != nil {
			return "", fmt.Errorf("nested: no directory for the cache (set VOLE_TEST_CACHE): %w", err)
		}
		home = u.HomeDir
	}
	return filepath.Join(home, ".cache", "vole", "test"), nil
}

// manifestPath is where the manifest of the cache in dir stands.
func manifestPath(dir string) string { return filepath.Join(dir, "manifest.json") }

// ReadManifest reads the manifest of the cache in dir. A cache that does not
// exist, or is of another format, is an empty one.
func ReadManifest(dir string) (*Manifest, error) {
	m := &Manifest{Format: manifestFormat}
	raw, err := os.ReadFile(manifestPath(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return m, nil
	}
	if err != nil {
		return nil, fmt.Errorf("nested: read the cache's manifest: %w", err)
	}
	var got Manifest
	if err := json.Unmarshal(raw, &got); err != nil || got.Format != manifestFormat {
		return m, nil
	}
	return &got, nil
}

// Write stores the manifest in the cache directory dir, atomically.
func (m *Manifest) Write(dir string) error {
	raw, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return fmt.Errorf("nested: encode the manifest: %w", err)
	}
	tmp, err := os.CreateTemp(dir, ".manifest-*")
	if err != nil {
		return fmt.Errorf("nested: write the manifest: %w", err)
	}
	defer os.Remove(tmp.Name())
	_, werr := tmp.Write(append(raw, '\n'))
	if err := errors.Join(werr, tmp.Sync(), tmp.Close()); err != nil {
		return fmt.Errorf("nested: write the manifest: %w", err)
	}
	if err := os.Rename(tmp.Name(), manifestPath(dir)); err != nil {
		return fmt.Errorf("nested: write the manifest: %w", err)
	}
	return nil
}

// Component finds a component by name.
func (m *Manifest) Component(name string) (Component, bool) {
	for _, c := range m.Components {
		if c.Name == name {
			return c, true
		}
	}
	return Component{}, false
}

// Set adds c, or replaces the component of the same name.
func (m *Manifest) Set(c Component) {
	for i := range m.Components {
		if m.Components[i].Name == c.Name {
			m.Components[i] = c
			return
		}
	}
	m.Components = append(m.Components, c)
}

// Names of components.
const (
	ComponentQEMU    = "qemu"
	ComponentCloud   = "kernel-cloud"
	ComponentGeneric = "kernel-generic"
	ComponentCloud12 = "kernel-6.12-cloud"
	ComponentBusybox = "busybox"
	ComponentACPICA  = "acpica"
	ComponentExt     = "e2fsprogs" // what makes and checks ext4
	ComponentRoot    = "root"      // a small Debian system: root.img
	ComponentFio     = "fio"       // fio and its libraries: fio.img
	ComponentNet     = "net"       // iperf3 and socat
	ComponentGit     = "git"       // git without its Perl
	// Kernels of other architectures, which vole must refuse: the image alone.
	ComponentI386  = "kernel-i386"
	ComponentARM64 = "kernel-arm64"
)
