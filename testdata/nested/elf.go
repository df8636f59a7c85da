package nested

import (
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// systemLibs are where a dynamic test binary's libraries are looked for.
var systemLibs = []string{
	"/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64", "/usr/lib64", "/lib", "/usr/lib",
}

// elfClosure lists the files that a program needs besides itself: its
// interpreter and every shared library, found in dirs. It is empty for a static
// program, and for what is no ELF file at all.
func elfClosure(program string, dirs []string) ([]string, error) {
	var list []string
	seen := map[string]bool{}
	todo := []string{program}
	for len(todo) > 0 {
		path := todo[0]
		todo = todo[1:]
		interp, needed, err := elfNeeds(path)
		if err != nil {
			return nil, err
		}
		if interp != "" && !seen[interp] && path == program {
			seen[interp] = true
			list = append(list, interp)
		}
		for _, lib := range needed {
			if seen[lib] {
				continue
			}
			seen[lib] = true
			found, err := findLibrary(lib, dirs)
			if err != nil {
				return nil, fmt.Errorf("nested: %s needs %s: %w", path, lib, err)
			}
			list = append(list, found)
			todo = append(todo, found)
		}
	}
	return list, nil
}

func findLibrary(name string, dirs []string) (string, error) {
	for _, dir := range dirs {
		path := filepath.Join(dir, name)
		if st, err := os.Stat(path); err == nil && st.Mode().IsRegular() {
			return path, nil
		}
	}
	return "", fmt.Errorf("no such library in %v", dirs)
}

// elfNeeds reads a file's interpreter and needed libraries.
func elfNeeds(path string) (interp string, needed []string, err error) {
	f, err := elf.Open(path)
	if err != nil {
		var format *elf.FormatError
		if errors.As(err, &format) {
			return "", nil, nil
		}
		return "", nil, fmt.Errorf("nested: read %s: %w", path, err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		b := make([]byte, p.Filesz)
		if _, err := p.ReadAt(b, 0); err != nil {
			return "", nil, fmt.Errorf("nested: read %s: %w", path, err)
		}
		for len(b) > 0 && b[len(b)-1] == 0 {
			b = b[:len(b)-1]
		}
		interp = string(b)
	}
	needed, err = f.DynString(elf.DT_NEEDED)
	if err != nil && !errors.Is(err, elf.ErrNoSymbols) {
		return "", nil, fmt.Errorf("nested: read %s: %w", path, err)
	}
	return interp, needed, nil
}
