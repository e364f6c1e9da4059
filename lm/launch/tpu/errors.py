"""What gcloud says when it fails, turned into one line that says what to do.

Texts of the Cloud TPU API, Compute Engine and Cloud Storage as gcloud prints
them, "ERROR: (gcloud.GROUP.COMMAND) STATUS: MESSAGE". The statuses are of
docs.cloud.google.com/apis/design/errors; the messages vary, so only few words
of each are relied on.
"""

import re

from lm.types import UserError

QUOTA_PAGE = "docs.cloud.google.com/tpu/docs/quota"
_LONGEST = 240  # Characters of gcloud's own words that are quoted.

# In this order: the first that matches is the kind.
_KINDS = (
    ("login", r"active account selected|gcloud auth login|reauthenticat|"
              r"refreshing your current auth tokens|invalid_grant"),
    ("project", r"find attribute \[project\]|"
                r"property \[?(core/)?project\]? is not currently set|"
                r"project '?[\w.:-]+'? (was )?(not found|does not exist)|"
                r"invalid project|USER_PROJECT_DENIED"),
    ("api", r"SERVICE_DISABLED|has not been used in project|"
            r"API \[[a-z.]+\] not enabled"),
    ("bucket", r"bucket does not exist|gs://[^/\s]+ not found: 404"),
    ("quota", r"\bquota\b|quota_?exceeded|RESOURCE_EXHAUSTED"),
    ("capacity", r"no more capacity|insufficient (reserved )?capacity|"
                 r"POOL_EXHAUSTED|currently unavailable|reservation.{0,60}"
                 r"(not found|does not exist)"),
    ("exists", r"ALREADY_EXISTS|already exists"),
    ("zone", r"locations?/[\w-]+'? ?(\(or it may not exist\)|was not found|"
             r"is not found)|unknown (zone|location)|invalid zone|"
             r"accelerator ?type.{0,80}(not found|not available|not supported|"
             r"unavailable|invalid)|zone .{0,80}(not found|does not exist)"),
    ("permission", r"PERMISSION_DENIED|does not have (permission|\S+ access)|"
                   r"\b403\b|forbidden|access ?denied|insufficient "
                   r"authentication scopes"),
    ("missing", r"NOT_FOUND|was not found|matched no objects|\b404\b"),
    ("usage", r"unrecognized arguments|invalid choice|must be specified"),
)


class GcloudError(UserError):
  """A failed gcloud; the line says what is wrong and how to mend it.

  Attributes:
    kind: "login", "quota" and so on; "other" if it is none that is known.
    said: gcloud's own words, on one line.
  """

  def __init__(self, line: str, *, kind: str, said: str):
    super().__init__(line)
    self.kind, self.said = kind, said


def kind_of(said: str) -> str:
  """Which kind of failure a text of gcloud or of the TPU API is."""
  for kind, pattern in _KINDS:
    if re.search(pattern, said, re.I | re.S):
      return kind
  return "other"


def shortened(stderr: str) -> str:
  """gcloud's words on one line, without its prefix and its advice."""
  begin = stderr.rfind("ERROR: ")
  text = stderr[begin:] if begin >= 0 else stderr
  text = re.sub(r"^ERROR: (\([\w.-]+\) )?", "", " ".join(text.split()))
  return text if len(text) <= _LONGEST else text[:_LONGEST] + "..."


def explained(stderr: str, *, what: str, accelerator: str = "",
              zone: str = "", where: str = "") -> GcloudError:
  """The error to raise.

  Args:
    stderr: of gcloud, or the message of a failed request.
    what: what was being done, for people: "create the queued resource llama".
    accelerator: that was asked for, if any.
    zone: where.
    where: the gs:// path at hand, if any.
  """
  said, kind = shortened(stderr), kind_of(stderr)
  thing = accelerator or "this"
  bucket = "/".join(where.split("/")[:3])
  lines = {
      "login": "gcloud is not logged in: run gcloud auth login",
      "project": f"no such project, or none is set ({said}): give --project,"
                 " or run gcloud config set project PROJECT",
      "api": f"an API is not enabled in the project ({said}): run gcloud"
             " services enable tpu.googleapis.com compute.googleapis.com"
             " storage.googleapis.com",
      "bucket": f"there is no bucket {bucket}: make it with gcloud storage"
                f" buckets create {bucket} --location=REGION in the region of"
                " the TPUs, or change --workdir",
      "quota": f"no quota for {thing} in {zone or 'this zone'} ({said}): ask"
               f" for more ({QUOTA_PAGE}), try --spot, whose quota is another"
               " one, or another --zone",
      "capacity": f"{thing} is not to be had in {zone or 'this zone'} now"
                  f" ({said}): try again later, --spot, another --zone, or"
                  " without --reserved",
      "exists": f"could not {what}: the name is taken ({said}); take another"
                " NAME, or remove it with lm tpu down",
      "zone": f"{thing} cannot be had in {zone or 'this zone'} ({said}): give"
              " another --zone (docs.cloud.google.com/tpu/docs/regions-zones)",
      "permission": f"could not {what}: not permitted ({said}); the account"
                    " needs the roles that docs/tpu.md lists",
  }
  line = lines.get(kind, f"could not {what}: {said or 'gcloud failed'}")
  return GcloudError(line, kind=kind, said=said)
