package guest

import (
	"bytes"
	"encoding/binary"
	"path/filepath"
	"strings"
)

// The cache that ldconfig(8) writes (glibc, sysdeps/generic/dl-cache.h).
const (
	cacheMagic   = "glibc-ld.so.cache1.1"
	cacheHeader  = 48 // magic, count, length of the strings, flags, extensions
	cacheEntry   = 24 // flags, key, value, version of the system, hwcap
	cacheX86_64  = 0x0303
	cacheEntries = 1 << 20 // at most
)

// parseCache returns the paths of libraries by their names, those that are made for
// no special processor; nil for what is no cache.
func parseCache(b []byte) map[string]string {
	// An old cache may stand before the new.
	at := bytes.Index(b, []byte(cacheMagic))
	if at < 0 {
		return nil
	}
	b = b[at:]
	if len(b) < cacheHeader {
		return nil
	}
	le := binary.LittleEndian
	n := le.Uint32(b[20:])
	if n > cacheEntries || uint64(len(b)) < cacheHeader+uint64(n)*cacheEntry {
		return nil
	}
	text := func(off uint32) string {
		if uint64(off) >= uint64(len(b)) {
			return ""
		}
		s, _, _ := bytes.Cut(b[off:], []byte{0})
		return string(s)
	}
	paths := make(map[string]string)
	for i := range int(n) {
		e := b[cacheHeader+i*cacheEntry:]
		if le.Uint32(e) != cacheX86_64 || le.Uint64(e[16:]) != 0 {
			continue
		}
		name, path := text(le.Uint32(e[4:])), text(le.Uint32(e[8:]))
		if _, ok := paths[name]; !ok && name != "" && filepath.IsAbs(path) {
			paths[name] = path
		}
	}
	return paths
}

// maxInclude is how deep files of ld.so.conf may include others.
const maxInclude = 8

// confDirs returns the directories that ld.so.conf names.
func confDirs(files fileSystem, name string, depth int) []string {
	b, err := files.ReadFile(name)
	if err != nil || depth > maxInclude {
		return nil
	}
	var dirs []string
	for line := range strings.Lines(string(b)) {
		line, _, _ = strings.Cut(line, "#")
		line = strings.TrimSpace(line)
		pattern, ok := strings.CutPrefix(line, "include")
		switch {
		case ok && strings.TrimLeft(pattern, " \t") != pattern:
			pattern = strings.TrimSpace(pattern)
			if !filepath.IsAbs(pattern) {
				pattern = filepath.Join(filepath.Dir(name), pattern)
			}
			for _, f := range files.Glob(pattern) {
				dirs = append(dirs, confDirs(files, f, depth+1)...)
			}
		case filepath.IsAbs(line):
			dirs = append(dirs, line)
		}
	}
	return dirs
}
