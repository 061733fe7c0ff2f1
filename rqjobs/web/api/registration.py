"""The API as it is put into an app. Importing the modules adds their operations to the table."""

from rqjobs.web.api import failures as failures
from rqjobs.web.api import functions as functions
from rqjobs.web.api import job_lists as job_lists
from rqjobs.web.api import jobs as jobs
from rqjobs.web.api import openapi as openapi
from rqjobs.web.api import queues as queues
from rqjobs.web.api import schedules as schedules
from rqjobs.web.api import tokens as tokens
from rqjobs.web.api.operations import api as api
