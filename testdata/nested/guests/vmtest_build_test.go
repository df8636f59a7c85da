package guests

import (
	"debug/elf"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/vole-vmm/vole/testdata/nested"
)

// sampleDir is the directory of the package whose tests vmtest.Main runs in a guest.
func sampleDir() (string, error) { return filepath.Abs("../../../vmm/vmtest/testdata/sample") }

// samplePath is where its test binary is, built plainly or "-race".
func samplePath(how string) (string, error) {
	dir, err := nested.CacheDir()
	return filepath.Join(dir, "bin", "vmtest-sample"+how+".test"), err
}

// vmtestFiles are what the tests of vmtest need in the emulated host. The test binaries
// are built outside of it; the one with the race detector only where gcc is.
func vmtestFiles() ([]string, error) {
	dir, err := sampleDir()
	if err != nil {
		return nil, err
	}
	binary, err := samplePath("")
	if err != nil {
		return nil, err
	}
	files := []string{filepath.Join(dir, "testdata"), binary}
	if !nested.Inside() {
		if err := buildSample(binary, "CGO_ENABLED=0", "-cover"); err != nil {
			return nil, err
		}
	}
	if nested.CurrentSuite() != nested.SuiteMatrix && nested.CurrentSuite() != nested.SuiteSoak {
		return files, nil
	}
	race, err := samplePath("-race")
	if err != nil {
		return nil, err
	}
	if _, err := exec.LookPath("gcc"); err != nil || nested.Inside() {
		return files, nil
	}
	if err := buildSample(race, "CGO_ENABLED=1", "-race"); err != nil {
		return nil, err
	}
	libraries, err := librariesOf(race)
	return append(append(files, race), libraries...), err
}

func buildSample(path string, env string, flags ...string) error {
	args := append([]string{"test", "-c", "-o", path}, flags...)
	cmd := exec.Command("go", append(args, "github.com/vole-vmm/vole/vmm/vmtest/testdata/sample")...)
	cmd.Env = append(os.Environ(), env)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building the sample's test binary: %w\n%s", err, out)
	}
	return nil
}

// librariesOf are the loader and the libraries of a program, of which each stands where
// this machine has it.
func librariesOf(path string) ([]string, error) {
	f, err := elf.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var files []string
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			name := make([]byte, p.Filesz)
			if _, err := p.ReadAt(name, 0); err != nil {
				return nil, err
			}
			files = append(files, strings.TrimRight(string(name), "\x00"))
		}
	}
	names, err := f.ImportedLibraries()
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		found := false
		for _, dir := range []string{"/lib/x86_64-linux-gnu", "/lib64", "/usr/lib64"} {
			if lib := filepath.Join(dir, name); !found {
				if _, err := os.Stat(lib); err == nil {
					files, found = append(files, lib), true
				}
			}
		}
		if !found {
			return nil, fmt.Errorf("%s needs %s, which is in none of the usual directories", path, name)
		}
	}
	return files, nil
}
