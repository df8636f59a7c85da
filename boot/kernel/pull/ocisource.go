package pull

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"strings"
)

// Media types of manifests (OCI Image Specification, "Media Types", and their
// elder twins).
const (
	typeOCIManifest    = "application/vnd.oci.image.manifest.v1+json"
	typeOCIIndex       = "application/vnd.oci.image.index.v1+json"
	typeDockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	typeDockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"

	maxManifest = 4 << 20 // bytes, as the specification has it
	maxLayers   = 256
)

type descriptor struct {
	MediaType string `json:"mediaType"`
	Digest    string `json:"digest"`
	Size      int64  `json:"size"`
	Platform  *struct {
		Architecture string `json:"architecture"`
		OS           string `json:"os"`
	} `json:"platform"`
}

// manifest is an image manifest or an index of such.
type manifest struct {
	MediaType string       `json:"mediaType"`
	Manifests []descriptor `json:"manifests"`
	Layers    []descriptor `json:"layers"`
}

func (s imageSource) find(ctx context.Context, j *job) (offer, error) {
	r := &registry{web: j.web, source: s, header: http.Header{}}
	ref := s.digest
	if ref == "" {
		ref = s.tag
	}
	m, digest, err := r.manifest(ctx, ref)
	if err != nil {
		return offer{}, err
	}
	if len(m.Manifests) > 0 {
		d, err := choosePlatform(m.Manifests)
		if err != nil {
			return offer{}, err
		}
		if !validDigest(d.Digest) { // what it names could not be verified
			return offer{}, archiveError("its index has a manifest with the digest %q, want %s and 64 hexadecimal digits", d.Digest, sumPrefix)
		}
		if m, digest, err = r.manifest(ctx, d.Digest); err != nil {
			return offer{}, err
		}
	}
	if err := m.check(); err != nil {
		return offer{}, err
	}
	return offer{id: digest, fetch: func(ctx context.Context, j *job, t *tree) (fetched, error) {
		return s.fetch(ctx, j, t, r, m.Layers)
	}}, nil
}

// choosePlatform picks the image for this machine out of an index.
func choosePlatform(list []descriptor) (descriptor, error) {
	var others []string
	for _, d := range list {
		if d.Platform == nil || d.Platform.Architecture == "amd64" && d.Platform.OS == "linux" {
			return d, nil
		}
		others = append(others, d.Platform.OS+"/"+d.Platform.Architecture)
	}
	return descriptor{}, fmt.Errorf("%w: the image is for %s, want linux/amd64", ErrNotFound, strings.Join(others, ", "))
}

func (m manifest) check() error {
	if len(m.Layers) == 0 || len(m.Layers) > maxLayers {
		return archiveError("its manifest has %d layers", len(m.Layers))
	}
	total := int64(0)
	for _, l := range m.Layers {
		if !validDigest(l.Digest) {
			return archiveError("its manifest has a layer with the digest %q", l.Digest)
		}
		if l.Size <= 0 || l.Size > maxDownload-total {
			return archiveError("its layers have more than %d bytes, or less than one", int64(maxDownload))
		}
		total += l.Size
		if !strings.Contains(l.MediaType, "tar") || strings.Contains(l.MediaType, "foreign") || strings.Contains(l.MediaType, "nondistributable") {
			return archiveError("its manifest has a layer of the kind %q", l.MediaType)
		}
	}
	return nil
}

// fetch unpacks the layers, the lowest first. A layer that has come whole stays
// until all have been unpacked.
func (s imageSource) fetch(ctx context.Context, j *job, t *tree, r *registry, layers []descriptor) (fetched, error) {
	var got fetched
	for i, l := range layers {
		sum := strings.TrimPrefix(l.Digest, sumPrefix)
		name := fmt.Sprintf("layer %d of %d", i+1, len(layers))
		d := download{url: s.base() + "/blobs/" + l.Digest, name: name, size: l.Size, sum: sum}
		file := j.work.join(sum)
		if err := r.blob(ctx, d, file, j.reporter); err != nil {
			return got, err
		}
		if err := j.unpackLayer(ctx, file, name, t); err != nil {
			return got, fmt.Errorf("%s: %w", name, err)
		}
		got.parts = append(got.parts, Part{Name: name, SHA256: sum})
	}
	return got, nil
}

func (j *job) unpackLayer(ctx context.Context, file, name string, t *tree) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	return t.addCompressedTar(ctx, j.meter(f, StepUnpacking, name, fileSize(file)), true)
}

// manifest fetches one by its tag or digest, and returns its digest too.
func (r *registry) manifest(ctx context.Context, ref string) (m manifest, digest string, err error) {
	url := r.source.base() + "/manifests/" + ref
	b, resp, err := r.get(ctx, url, maxManifest)
	if err != nil {
		return m, "", err
	}
	sum := sha256.Sum256(b)
	digest = sumPrefix + hex.EncodeToString(sum[:])
	want := resp.Header.Get("Docker-Content-Digest")
	if strings.HasPrefix(ref, sumPrefix) {
		want = ref
	}
	if want != "" && want != digest && strings.HasPrefix(want, sumPrefix) {
		return m, "", fmt.Errorf("the manifest %s: %w: its digest is %s, want %s", ref, ErrChecksum, digest, want)
	}
	if err := json.Unmarshal(b, &m); err != nil {
		return m, "", archiveError("the manifest %s: %w", ref, err)
	}
	return m, digest, nil
}
